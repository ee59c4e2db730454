"""Reverse-time samplers on the time grid: one step of one image, from level i to level i - 1.

A `Sampler` is two pure functions over a small state whose field `x` is the image, so that a sampler with a
memory (multi-step) can carry it along. The chain engine owns the loop. Which sampler ran is part of every
probability that is reported.

A new sampler is one function here, one entry in `SAMPLERS`, and a field of `SamplerSettings` for each keyword it takes.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from ..core.errors import check, in_range, one_of
from ..core.types import Image, Key, Level, ScoreFn
from .grid import SPACINGS, STEP_SPACINGS, TimeGrid, time_grid
from .sde import T_MIN_SAMPLING, Process


class SamplerState(NamedTuple):
    """What the next step needs; `x` is the image in model range."""

    x: Image


class MultistepState(NamedTuple):
    """Of a sampler that extrapolates from the step before."""

    x: Image
    denoised: Image  # estimate of x_0 one level higher
    started: Bool[Array, ""]  # whether there was such a step


class Sampler(NamedTuple):
    """`init(x) -> state`; `step(state, level, key) -> state` one level lower; level 1 ends at t = 0, noise-free."""

    init: Callable[[Image], Any]
    step: Callable[[Any, Level, Key], Any]
    num_evaluations: int = 1  # of the score, in every step


def _denoiser(grid: TimeGrid, score_fn: ScoreFn) -> Callable[[Image, Level], Image]:
    """Mean of x_0 given x_i, from the score at level i (Tweedie's formula)."""
    times, scales, stds = jnp.asarray(grid.t), jnp.asarray(grid.scale), jnp.asarray(grid.std)
    return lambda x, level: (x + stds[level] ** 2 * score_fn(x, times[level])) / scales[level]


def _clipped(x0: Image, limit: float) -> Image:
    """The image cut to [-limit, limit]; 0: as it is."""
    return jnp.clip(x0, -limit, limit) if limit else x0


def euler_maruyama(sde: Process, grid: TimeGrid, score_fn: ScoreFn) -> Sampler:
    """Euler-Maruyama on the reverse SDE (paper eq. 3), the paper's sampler.

    Needs about 1000 levels: on a single training image it leaves 0.04 / 0.7 / 3 / 14 grey levels rms at
    1000 / 200 / 100 / 50 levels, where `ancestral` is exact.
    """
    times, steps = jnp.asarray(grid.t), jnp.asarray(grid.dt)

    def step(state: SamplerState, level: Level, key: Key) -> SamplerState:
        t, dt, x = times[level], steps[level], state.x
        f, g = sde.coefficients(t)
        drift = f * x - g**2 * score_fn(x, t)
        noise = jnp.where(level > 1, 1.0, 0.0) * jax.random.normal(key, x.shape, x.dtype)
        return SamplerState(x - drift * dt + g * jnp.sqrt(dt) * noise)

    return Sampler(init=SamplerState, step=step)


def ancestral(sde: Process, grid: TimeGrid, score_fn: ScoreFn, *, clip_sample: float = 0.0) -> Sampler:
    """Posterior of x_{i-1} given x_i, with x_0 replaced by the denoised mean (Ho et al. 2020, eq. 6-7, 11).

    Exact when the data are a single image, whatever the number of levels.
    """
    denoise = _denoiser(grid, score_fn)
    keep_x, keep_x0, posterior_std = (jnp.asarray(c) for c in (grid.keep_x, grid.keep_x0, grid.posterior_std))

    def step(state: SamplerState, level: Level, key: Key) -> SamplerState:
        x = state.x
        x0 = _clipped(denoise(x, level), clip_sample)
        noise = jax.random.normal(key, x.shape, x.dtype)
        return SamplerState(keep_x[level] * x + keep_x0[level] * x0 + posterior_std[level] * noise)

    return Sampler(init=SamplerState, step=step)


def ddim(
    sde: Process,
    grid: TimeGrid,
    score_fn: ScoreFn,
    *,
    spacing: str = SPACINGS[0],
    eta: float = 0.0,
    set_alpha_to_one: bool = True,
    clip_sample: float = 0.0,
) -> Sampler:
    """Denoising diffusion implicit steps (Song, Meng & Ermon 2021, arXiv:2010.02502, eq. 12 and 16).

    With the noise e = (x_i - scale_i x_0-hat) / std_i, on any of our processes,

        x_{i-1} = scale_{i-1} x_0-hat + sqrt(std_{i-1}^2 - s^2) e + s z,    s = eta * the posterior's std.

    As in diffusers, clipping x_0-hat leaves e as it was, and where the levels are spaced by a scheduler of T steps,
    each step goes down by T // N of them, wherever the next level lies.

    Args:
      set_alpha_to_one: the last step ends at t = 0; else at the process's first own step, with the noise of that.
    """
    times, ends = grid.t.astype(np.float64), np.zeros(len(grid.t))
    ends[1:], total = times[:-1], sde.num_steps
    if spacing in STEP_SPACINGS and total:
        ends[1:] = np.maximum(np.round(times[1:] * total) - total // grid.num_levels, 0) / total
    if total and not set_alpha_to_one:
        ends[1:] = np.maximum(ends[1:], 1 / total)
    (scale, std), (to_scale, to_std) = sde.marginal(times), sde.marginal(ends)
    drawn, along = np.zeros((2, len(times)))
    # Under a root, a step of no length gives a rounding error.
    variance = np.maximum(std[1:] ** 2 - (scale[1:] / to_scale[1:]) ** 2 * to_std[1:] ** 2, 0.0)
    drawn[1:] = eta * to_std[1:] * np.sqrt(variance) / std[1:]
    along[1:] = np.sqrt(np.maximum(to_std[1:] ** 2 - drawn[1:] ** 2, 0.0)) / std[1:]
    scale, to_scale, along, drawn = (jnp.asarray(c, jnp.float32) for c in (scale, to_scale, along, drawn))
    denoise = _denoiser(grid, score_fn)

    def step(state: SamplerState, level: Level, key: Key) -> SamplerState:
        x = state.x
        x0 = denoise(x, level)
        x = to_scale[level] * _clipped(x0, clip_sample) + along[level] * (x - scale[level] * x0)
        return SamplerState(x + drawn[level] * jax.random.normal(key, x.shape, x.dtype) if eta else x)

    return Sampler(init=SamplerState, step=step)


def langevin(key: Key, score: Image, x: Image, *, alpha: ArrayLike, snr: float) -> Image:
    """One Langevin step at constant t (Song et al. 2021, Alg. 4-5), which leaves p_t as it is for small `snr`.

    The size of the step is 2 alpha (snr |z| / |score|)^2 with the norms of this image, so that chains stay independent.
    """
    noise = jax.random.normal(key, x.shape, x.dtype)
    size = 2.0 * alpha * snr**2 * jnp.sum(noise**2) / jnp.sum(score**2)
    return x + size * score + jnp.sqrt(2.0 * size) * noise


def predictor_corrector(
    sde: Process,
    grid: TimeGrid,
    score_fn: ScoreFn,
    *,
    predictor: str = "ancestral",
    corrector_steps: int = 1,
    corrector_snr: float = 0.16,
) -> Sampler:
    """Langevin steps at level i, then a step of the predictor, which thus comes last and is noise-free there.

    Their alpha_i is (scale_i / scale_{i-1})^2, which is 1 - beta_i for VP, 1 for VE, and exists for sub-VP as well.
    """
    predict = PREDICTORS[predictor](sde, grid, score_fn)
    times, scale = jnp.asarray(grid.t), grid.scale.astype(np.float64)
    alphas = jnp.asarray((scale / np.concatenate([[1.0], scale[:-1]])) ** 2, jnp.float32)

    def step(state: SamplerState, level: Level, key: Key) -> SamplerState:
        def correct(x: Image, key: Key) -> tuple[Image, None]:
            return langevin(key, score_fn(x, times[level]), x, alpha=alphas[level], snr=corrector_snr), None

        keys = jax.random.split(key, 1 + corrector_steps)
        x, _ = jax.lax.scan(correct, state.x, keys[1:])
        return predict.step(SamplerState(x), level, keys[0])

    return Sampler(SamplerState, step, num_evaluations=corrector_steps + predict.num_evaluations)


def probability_flow(
    sde: Process, grid: TimeGrid, score_fn: ScoreFn, *, ode_solver: str = "heun", ode_substeps: int = 1
) -> Sampler:
    """Probability-flow ODE (paper eq. 5), each interval of the grid by `ode_substeps` steps of a Runge-Kutta method.

    Nothing is drawn after the start. From level 1 it takes the denoised mean. Runge-Kutta steps in t are only as good
    as the grid: "quadratic" or "log_snr" spacing for few levels.
    """
    solver, times = ODE_SOLVERS[ode_solver](), jnp.asarray(grid.t)

    def step(state: SamplerState, level: Level, key: Key) -> SamplerState:
        del key
        start, upper, lower, last = state.x, times[level], times[level - 1], level == 1

        def field(t: ArrayLike, x: Image, _: None) -> Image:
            # Down to 0 the field is the straight line to the denoised mean, which every such method follows exactly.
            x, time = jnp.where(last, start, x), jnp.where(last, upper, t)
            score, (scale, std), (f, g) = score_fn(x, time), sde.marginal(time), sde.coefficients(time)
            return jnp.where(last, (x - (x + std**2 * score) / scale) / upper, f * x - 0.5 * g**2 * score)

        term, x, memory = diffrax.ODETerm(field), start, None
        for i in range(ode_substeps):
            begin, end = (upper + (lower - upper) * (j / ode_substeps) for j in (i, i + 1))
            memory = solver.init(term, begin, end, x, None) if i == 0 else memory
            x, _, _, memory, _ = solver.step(term, begin, end, x, None, memory, made_jump=False)
        return SamplerState(x)

    # A first-same-as-last method begins a step with what it ended the one before with.
    shared = int(solver.tableau.fsal)
    return Sampler(SamplerState, step, num_evaluations=ode_substeps * (solver.tableau.num_stages - shared) + shared)


def dpm_solver(sde: Process, grid: TimeGrid, score_fn: ScoreFn, *, max_extrapolation: float = 0.0) -> Sampler:
    """DPM-Solver++(2M) on the probability-flow ODE (Lu et al. 2022, arXiv:2211.01095, Alg. 2), 20 to 50 levels.

    With lambda = log(scale / std) the flow of any of our processes is d(x / std) / d lambda = exp(lambda) x_0-hat, so

        x_{i-1} = std_{i-1} / std_i x_i + scale_{i-1} (1 - exp(-h_i)) D,   h_i = lambda_{i-1} - lambda_i,

    with D the denoised mean extrapolated linearly to the middle of the interval from the step before. A chain's first
    step has no such step, whatever its level, and the last one, to lambda = infinity, takes the denoised mean itself.

    Args:
      max_extrapolation: largest weight h_i / (2 h_{i+1}) of the difference between this and the last denoised mean; 0:
        any, as published. Where intervals grow towards 0, as those of few levels even in t, a chain may diverge without
        it; 0.5 is what equal intervals have.
    """
    scale, std = grid.scale.astype(np.float64), grid.std.astype(np.float64)
    shrink, gain, blend = np.zeros((3, len(scale)))
    log_ratio = np.log(scale[1:]) - np.log(std[1:])
    h = np.concatenate([[np.inf, np.inf], log_ratio[:-1] - log_ratio[1:]])
    shrink[1:] = std[:-1] / std[1:]
    gain[1:] = -scale[:-1] * np.expm1(-h[1:])
    blend[2:-1] = np.minimum(h[2:-1] / (2.0 * h[3:]), max_extrapolation or np.inf)
    shrink, gain, blend = (jnp.asarray(column, jnp.float32) for column in (shrink, gain, blend))
    denoise = _denoiser(grid, score_fn)

    def init(x: Image) -> MultistepState:
        return MultistepState(x, jnp.zeros_like(x), jnp.zeros((), bool))

    def step(state: MultistepState, level: Level, key: Key) -> MultistepState:
        del key
        x0 = denoise(state.x, level)
        weight = jnp.where(state.started, blend[level], 0.0)
        middle = x0 + weight * (x0 - state.denoised)
        return MultistepState(shrink[level] * state.x + gain[level] * middle, x0, jnp.ones((), bool))

    return Sampler(init, step)


PREDICTORS: dict[str, Callable[[Process, TimeGrid, ScoreFn], Sampler]] = {
    "euler_maruyama": euler_maruyama,
    "ancestral": ancestral,
}
ODE_SOLVERS = {"heun": diffrax.Heun, "bosh3": diffrax.Bosh3, "tsit5": diffrax.Tsit5}
SAMPLERS: dict[str, Callable[..., Sampler]] = PREDICTORS | {
    "ddim": ddim,
    "predictor_corrector": predictor_corrector,
    "probability_flow": probability_flow,
    "dpm_solver": dpm_solver,
}


# In place of a sampler's name: the one that the scheduler of an imported model is, with its options.
OF_SCHEDULER = "scheduler"
_UNNAMED = {"spacing": "time", "clip_sample": 0.0, "max_extrapolation": 0.0}  # options that a label leaves out


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """Which sampler runs, on how many levels; fields that the sampler does not take are not read.

    Attributes:
      name: a key of `SAMPLERS`; or `OF_SCHEDULER`, which stands for an imported model's own until that is read.
      num_levels: N, reverse steps from t = 1 to 0; 2 to 100,000.
      t_min: time of level 1, in (0, 0.5].
      spacing: of the levels, one of `SPACINGS`.
      steps_offset: of spacing "leading", 0 to 1000 steps of the scheduler.
      eta: of ddim, share of the ancestral sampler's noise, in [0, 1].
      set_alpha_to_one: of ddim, whether the last step ends at t = 0.
      clip_sample: of ancestral and ddim, the predicted image is cut to [-clip_sample, clip_sample], up to 1000; 0: not.
      max_extrapolation: of dpm_solver, in [0, 1000]; 0: no limit.
      predictor: of predictor_corrector, a key of `PREDICTORS`.
      corrector_steps: its Langevin steps at each level, 1 to 1000.
      corrector_snr: their signal-to-noise ratio, in [0.001, 0.9].
      ode_solver: of probability_flow, a key of `ODE_SOLVERS`.
      ode_substeps: its steps from level to level, 1 to 64, each a part of the compiled program.
    """

    name: str = "euler_maruyama"
    num_levels: int = 1000
    t_min: float = T_MIN_SAMPLING
    spacing: str = "time"
    steps_offset: int = 0
    eta: float = 0.0
    set_alpha_to_one: bool = True
    clip_sample: float = 0.0
    max_extrapolation: float = 0.0
    predictor: str = "ancestral"
    corrector_steps: int = 1
    corrector_snr: float = 0.16
    ode_solver: str = "heun"
    ode_substeps: int = 1

    def __post_init__(self) -> None:
        one_of("sampler.name", self.name, (*SAMPLERS, OF_SCHEDULER))
        check(
            2 <= self.num_levels <= 10**5,
            "sampler.num_levels",
            got=self.num_levels,
            expected="an integer in [2, 100,000]",
            fix="use 1000, or 100 with the ancestral sampler",
        )
        in_range("sampler.t_min", self.t_min, 1e-7, 0.5)
        one_of("sampler.spacing", self.spacing, SPACINGS)
        in_range("sampler.steps_offset", self.steps_offset, 0, 1000)
        in_range("sampler.eta", self.eta, 0.0, 1.0)
        in_range("sampler.clip_sample", self.clip_sample, 0.0, 1000.0)
        in_range("sampler.max_extrapolation", self.max_extrapolation, 0.0, 1000.0)
        one_of("sampler.predictor", self.predictor, PREDICTORS)
        in_range("sampler.corrector_steps", self.corrector_steps, 1, 1000)
        in_range("sampler.corrector_snr", self.corrector_snr, 0.001, 0.9)
        one_of("sampler.ode_solver", self.ode_solver, ODE_SOLVERS)
        in_range("sampler.ode_substeps", self.ode_substeps, 1, 64)

    @property
    def options(self) -> dict[str, object]:
        """The fields that this sampler takes."""
        taken = inspect.signature(SAMPLERS[self.name]).parameters.values()
        return {p.name: getattr(self, p.name) for p in taken if p.kind is p.KEYWORD_ONLY}

    @property
    def label(self) -> str:
        """The sampler in words, for reports.

        >>> SamplerSettings("dpm_solver", 20, spacing="log_snr").label
        'dpm_solver (spacing log_snr)'
        """
        options = self.options | {"spacing": self.spacing}
        if self.spacing == "leading":
            options["steps_offset"] = self.steps_offset
        named = {name: value for name, value in options.items() if _UNNAMED.get(name) != value}
        words = ", ".join(f"{name} {value}" for name, value in named.items())
        return f"{self.name} ({words})" if words else self.name


def make_sampler(settings: SamplerSettings, sde: Process, grid: TimeGrid, score_fn: ScoreFn) -> Sampler:
    """The sampler that the settings name, on the grid of `make_grid`.

    Raises:
      RequestError: if they name a scheduler's, or do not fit the process.
    """
    one_of("sampler.name", settings.name, SAMPLERS)
    return SAMPLERS[settings.name](sde, grid, score_fn, **settings.options)


def make_grid(settings: SamplerSettings, sde: Process) -> TimeGrid:
    """The grid that the settings describe.

    Raises:
      RequestError: if they ask for steps of a scheduler, and the process has none; and as `time_grid`.
    """
    check(
        settings.set_alpha_to_one or settings.name != "ddim" or sde.num_steps is not None,
        "sampler.set_alpha_to_one",
        got=False,
        expected="True: only a scheduler has a first step that a chain could end at",
        fix="leave it out",
    )
    options = {"t_min": settings.t_min, "spacing": settings.spacing, "steps_offset": settings.steps_offset}
    return time_grid(sde, settings.num_levels, **options)
