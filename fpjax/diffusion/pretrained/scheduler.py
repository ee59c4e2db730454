"""A diffusers scheduler: the discrete noise schedule, what the network predicts, and the sampler that it is."""

import dataclasses
from pathlib import Path

import numpy as np

from ...core.errors import check
from ..grid import STEP_SPACINGS
from ..sampling import SamplerSettings
from .fields import FIX_FILE, Fields, is_number, part_file

SCHEDULERS = {"DDPMScheduler": "ancestral", "DDIMScheduler": "ddim"}  # and their samplers here
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """The noise schedule that a model was trained with (Ho et al. 2020, arXiv:2006.11239, section 2).

    Attributes:
      name: class in diffusers.
      betas: variances of the N steps, each in (0, 1).
      prediction_type: what the network predicts: "epsilon", "v_prediction" or "sample".
      timestep_spacing: of the steps that are visited, where not all are: "leading", "linspace" or "trailing".
      steps_offset: of "leading", added to each.
      set_alpha_to_one: of DDIM, whether the last step ends at t = 0.
      clip_sample: where the predicted image is cut; 0: it is not.
      ignored: one line for each setting that changes diffusers' samples and is not followed here.
    """

    name: str
    betas: tuple[float, ...]
    prediction_type: str
    timestep_spacing: str
    steps_offset: int
    set_alpha_to_one: bool
    clip_sample: float
    ignored: tuple[str, ...]

    def sampler(self, settings: SamplerSettings) -> SamplerSettings:
        """The pipeline's own sampler, with the number of levels (and DDIM's eta) of `settings`."""
        return dataclasses.replace(
            settings,
            name=SCHEDULERS[self.name],
            spacing=self.timestep_spacing,
            steps_offset=self.steps_offset,
            set_alpha_to_one=self.set_alpha_to_one,
            clip_sample=self.clip_sample,
        )

    def beta_array(self) -> np.ndarray:
        """`betas` as float64, shape (N,)."""
        return np.asarray(self.betas, np.float64)


def _betas(schedule: str, start: float, end: float, num_steps: int) -> np.ndarray:
    """Variances of the steps, float64: linear (Ho et al. 2020), linear in the root, or cosine (Nichol & Dhariwal 2021).

    >>> _betas("scaled_linear", 0.01, 0.09, 3).round(4).tolist()
    [0.01, 0.04, 0.09]
    """
    if schedule == "linear":
        return np.linspace(start, end, num_steps)
    if schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, num_steps) ** 2
    # arXiv:2102.09672, eq. 17, with s = 0.008 and betas cut at 0.999.
    level = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - level[1:] / level[:-1], 0.999)


def read_scheduler(directory: Path) -> Scheduler:
    """Reads `scheduler_config.json`, of a directory or of a pipeline's `scheduler/`.

    Raises:
      RequestError: the file is missing or damaged, or its process is not a DDPM's.
    """
    fields = Fields(part_file(directory, "scheduler", "scheduler_config.json"))
    name = fields.choice("_class_name", None, SCHEDULERS)
    num_steps = fields.integer("num_train_timesteps", 1000, 2, 100_000)
    fields.take("rescale_betas_zero_snr", False, lambda v: v is False, "false: at a zero SNR epsilon says nothing")
    fields.take("predict_epsilon", True, lambda v: v is True, "true, or prediction_type in its place")
    prediction_type = fields.choice("prediction_type", "epsilon", PREDICTION_TYPES)
    start, end = fields.number("beta_start", 1e-4, 0.0, 1.0), fields.number("beta_end", 0.02, 0.0, 1.0)
    schedule = fields.choice("beta_schedule", "linear", BETA_SCHEDULES)
    trained = fields.take(
        "trained_betas",
        None,
        lambda v: v is None or (isinstance(v, list) and len(v) == num_steps and all(map(is_number, v))),
        f"null, or {num_steps} numbers",
    )
    betas = _betas(schedule, start, end, num_steps) if trained is None else np.asarray(trained, np.float64)
    check(
        bool(np.all((betas > 0) & (betas < 1))),
        f"{fields.path}: betas",
        got=f"{betas.min():g} to {betas.max():g}",
        expected="variances inside (0, 1)",
        fix="correct beta_start and beta_end, or trained_betas",
    )
    variances = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
    ignored, clip, ddim = [], fields.flag("clip_sample", True), name == "DDIMScheduler"
    limit = fields.number("clip_sample_range", 1.0, 1e-6, 1000.0)
    spacing = fields.choice("timestep_spacing", "leading", STEP_SPACINGS)
    offset = fields.integer("steps_offset", 0, 0, 1000)
    to_one = fields.flag("set_alpha_to_one", True)
    variance = fields.choice("variance_type", "fixed_small", variances)
    # Dynamic thresholding takes the place of clipping.
    if fields.flag("thresholding", False):
        ignored.append("thresholding: predicted images are not thresholded during sampling")
        clip = False
    for option in ("dynamic_thresholding_ratio", "sample_max_value"):
        fields.number(option, 1.0, 0.0, 1e6)
    if variance.startswith("fixed_large") and not ddim:
        ignored.append(f"variance_type {variance}: the sampler takes fixed_small ones")
    fields.take("skip_prk_steps", None, lambda v: v is None or isinstance(v, bool), "true or false")  # of PNDM
    fields.refuse_unknown(f"{name}'s", fix=FIX_FILE)
    return Scheduler(
        name,
        tuple(betas.tolist()),
        prediction_type,
        spacing,
        offset,
        to_one or not ddim,
        limit if clip else 0.0,
        tuple(ignored),
    )
