"""Figures and mosaics of the report, as PNG."""

import io
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..audit.results import AuditResult
from .images import ReportImages, Returns, Training
from .numbers import MOST_SHOWN, small, time_text
from .rows import controls_of, members_of, rank_last

# Colours of Okabe & Ito (2008), which colour-blind readers can tell apart; controls are grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GREY, _DARK = "#a0a0a0", "#404040"
MAX_TILES = 40


# Figures


def _colour(member: int) -> str:
    return _COLOURS[member % len(_COLOURS)]


def _name(result: AuditResult, row: int) -> str:
    """What a legend calls a member; many share a name, and legends have each name once."""
    return f"member {row}" if len(result.tests) <= MOST_SHOWN else "members"


def _once(handles: Iterable[Any]) -> list[Any]:
    """The handles of a legend whose labels are new."""
    return list({handle.get_label(): handle for handle in reversed(list(handles))}.values())[::-1]


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, height), layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No version of Matplotlib among the metadata: equal results give equal bytes.
    figure.savefig(buffer, format="png", metadata={"Software": "fpjax"})
    return buffer.getvalue()


def _draw_search(result: AuditResult) -> bytes:
    """q_M(t) of members with intervals, fit and summaries; the controls' fits beneath."""
    figure, axes = _figure(4.3)
    for control in controls_of(result):
        axes.plot(control.curve.t, control.curve.isotonic, color=_GREY, linewidth=0.8, alpha=0.7, zorder=1)
    legend = []
    for i, (member, test) in enumerate(members_of(result)):
        curve, colour = member.curve, _colour(i)
        chains = np.asarray(curve.num_chains)
        rate = np.asarray(curve.num_detected) / np.maximum(chains, 1)
        errors = np.maximum([rate - curve.lower, curve.upper - rate], 0)
        if len(curve.t) <= 60:
            axes.errorbar(curve.t, rate, errors, fmt=".", color=colour, markersize=6, elinewidth=1.1, zorder=2)
        else:  # So many bars are a band.
            axes.fill_between(curve.t, curve.lower, curve.upper, color=colour, alpha=0.13, linewidth=0, zorder=1)
            axes.plot(curve.t, rate, ".", color=colour, markersize=2, alpha=0.4, zorder=2)
        axes.plot(curve.t, curve.isotonic, color=colour, linewidth=2, zorder=3)
        for value, style in ((member.t50, "-"), (member.t_prime_alpha, "--"), (member.t_prime, ":")):
            if math.isfinite(value) and value > 0:
                axes.axvline(value, color=colour, linestyle=style, linewidth=1.1, zorder=2)
        legend.append(
            Line2D([], [], color=colour, marker=".", linewidth=2, label=f"{_name(result, test.row)}: rate, fit")
        )
    if controls_of(result):
        legend.append(Line2D([], [], color=_GREY, linewidth=0.8, label="held-out targets: fits"))
    for style, label in (("-", "$t_{50}$"), ("--", "$t'_\\alpha$"), (":", "$t'$")):
        legend += axes.plot([], [], style, color=_DARK, linewidth=1.1, label=label)
    legend.append(
        axes.axhline(
            1 / result.num_train,
            color=_DARK,
            linestyle="-.",
            linewidth=0.9,
            zorder=1,
            label=f"1/N = {small(1 / result.num_train)}",
        )
    )
    axes.set(
        xlabel="time t that the target is noised to",
        ylabel="rate of return $q_M(t)$",
        ylim=(-0.03, 1.03),
        xlim=(0, max(target.curve.t[-1] for target in result.targets) * 1.02),
    )
    # Outside, because the curve may pass anywhere.
    figure.legend(handles=_once(legend), loc="outside upper center", ncols=3)
    return _png(figure)


def _dots(drawn: Sequence[tuple[float, str, str]], last: float, *, label: str, censored: bool) -> bytes:
    """Values on one axis with colours and names, equal ones stacked; a triangle means "this or later"."""
    places = [round(45 * value / last) for value, *_ in drawn]
    tallest = max(map(places.count, places), default=1)
    figure, axes = _figure(2.2 if tallest < 12 else 3.0)
    heights: dict[int, int] = {}
    for place, (value, colour, name) in zip(places, drawn, strict=True):
        heights[place] = height = heights.get(place, -1) + 1
        axes.plot(
            value,
            height,
            ">" if censored and value >= last else "o",
            color=colour,
            # Of a hundred equal ones a column remains; a member shows on it.
            markersize=max(4.5, min(9.0, 110 / tallest)) if colour == _GREY else 9,
            label=name,
            markeredgecolor="white",
            markeredgewidth=0.3 if tallest > 24 and colour == _GREY else 1,
            clip_on=False,
        )
    if not censored:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=label, yticks=[], xlim=(0, last * 1.02), ylim=(-0.05 * tallest - 0.7, 1.04 * tallest))
    axes.spines["left"].set_visible(False)
    figure.legend(handles=_once(axes.get_legend_handles_labels()[0]), loc="outside upper center", ncols=3)
    return _png(figure)


def _draw_ranking(result: AuditResult) -> bytes:
    """t50 of members among those of the held-out targets."""
    members = members_of(result)
    drawn = [
        (target.t50_rank, _GREY, f"held-out targets (H = {len(controls_of(result))})") for target in controls_of(result)
    ]
    drawn += [(member.t50_rank, _colour(i), _name(result, test.row)) for i, (member, test) in enumerate(members)]
    return _dots(
        [entry for entry in drawn if math.isfinite(entry[0])],
        min(rank_last(result, member) for member, _ in members),
        label="$t_{50}$ by the chains that members and held-out targets share",
        censored=True,
    )


def _draw_counts(result: AuditResult) -> bytes:
    """Counts of members among those of the held-out targets at the last look."""
    look = result.model.looks[-1]
    drawn = [(float(hits), _GREY, f"held-out targets (H = {len(look.controls)})") for hits in look.controls]
    drawn += [
        (float(hits), _colour(i), _name(result, test.row))
        for i, (hits, test) in enumerate(zip(look.members, result.tests, strict=True))
    ]
    label = f"samples that are taken for the target, of {look.num_samples:,}"
    return _dots(drawn, max(1.0, *(hits for hits, *_ in drawn)), label=label, censored=False)


def _draw_likelihood(result: AuditResult) -> bytes:
    """Histogram of each group's bits/dim over shared bins with its mean, the members as lines through all."""
    groups = [group for group in result.nll if group.name != "member" and group.bits_per_dim]
    members = [
        (i, each.row, each.bits_per_dim) for i, each in enumerate(result.nll_members) if each.bits_per_dim is not None
    ]
    values = [v for group in groups for v in group.bits_per_dim] + [bits for *_, bits in members]
    bins = np.linspace(min(values), max(values) + 1e-6, 41)
    figure = Figure(figsize=(5.6, 0.9 + 0.75 * max(len(groups), 1)), layout="constrained")
    panels = figure.subplots(max(len(groups), 1), sharex=True, squeeze=False)[:, 0]
    for axes, group in zip(panels, groups, strict=False):
        axes.hist(group.bits_per_dim, bins=bins.tolist(), color=_GREY)
        error = group.standard_error if math.isfinite(group.standard_error) else 0.0
        height = 0.85 * axes.get_ylim()[1]
        axes.errorbar(group.mean, height, xerr=error, fmt="D", color=_DARK, markersize=5, capsize=3)
        axes.set_ylabel(f"{group.name}\n({len(group.bits_per_dim)})", rotation=0, ha="right", va="center", fontsize=9.5)
        axes.set_yticks([])
    for axes in panels:
        for i, row, bits in members:
            label = _name(result, row) if axes is panels[0] else None
            axes.axvline(bits, color=_colour(i), linewidth=2, label=label)
    panels[0].plot([], [], "D", color=_DARK, markersize=5, label="mean and standard error")
    panels[-1].set_xlabel("NLL in bits/dim (fewer: likelier)")
    figure.legend(handles=_once(panels[0].get_legend_handles_labels()[0]), loc="outside upper center", ncols=3)
    return _png(figure)


def _draw_snapshots(result: AuditResult) -> bytes:
    """Bits/dim of members and means of the other followed groups over training."""
    figure, axes = _figure(3.2)
    steps = [snapshot.step for snapshot in result.snapshots]
    for i in range(len(result.tests)):
        bits = [snapshot.member[i] for snapshot in result.snapshots]
        axes.plot(steps, bits, "o-", color=_colour(i), linewidth=2, label=_name(result, result.tests[i].row))
    names = [group.name for group in result.snapshots[0].groups if group.name != "member"]
    for name, marker in zip(names, "s^Dv", strict=False):
        groups = [group for snapshot in result.snapshots for group in snapshot.groups if group.name == name]
        errors = [g.standard_error if math.isfinite(g.standard_error) else 0.0 for g in groups]
        means = [group.mean for group in groups]
        axes.errorbar(steps, means, errors, fmt=f"{marker}-", color=_GREY, markersize=5, linewidth=1, label=name)
    axes.set(xlabel="training step", ylabel="NLL in bits/dim")
    figure.legend(handles=_once(axes.get_legend_handles_labels()[0]), loc="outside upper center", ncols=3)
    return _png(figure)


def _draw_bound(result: AuditResult) -> bytes:
    """Mean density E[p(x')] at the fine levels, and each cell's sup as a step."""
    figure, axes = _figure(3.2)
    for i, found in enumerate(result.bound):
        axes.plot(found.t, found.log_mean, ".", color=_colour(i), label=f"{_name(result, found.row)}: log E[p(x')]")
        for cell in found.cells:
            axes.plot([cell.t_low, cell.t_high], [cell.log_sup] * 2, color=_colour(i), linewidth=2)
        axes.plot([], [], color=_colour(i), linewidth=2, label="its sup over a cell")
        for value, style, label in ((found.t_prime_alpha, "--", "$t'_\\alpha$"), (found.t_prime, ":", "$t'$")):
            if value > 0:
                axes.axvline(value, color=_colour(i), linestyle=style, linewidth=1.1, label=label)
    axes.set(xlabel="time t that the target is noised to", ylabel="log density, nats")
    figure.legend(handles=_once(axes.get_legend_handles_labels()[0]), loc="outside upper center", ncols=4)
    return _png(figure)


def _draw_training(training: Training) -> bytes:
    curves = {"loss": training.loss, "gradient norm": [math.nan if n is None else n for n in training.grad_norm]}
    curves = {label: values for label, values in curves.items() if values}
    figure = Figure(figsize=(5.6, 0.6 + 2.0 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axes, (label, values) in zip(panels, curves.items(), strict=True):
        axes.plot(training.step, values, color=_COLOURS[0], linewidth=1.4)
        finite = [value for value in values if math.isfinite(value)]
        axes.set(ylabel=label, yscale="log" if finite and min(finite) > 0 else "linear")
    panels[-1].set_xlabel("training step")
    return _png(figure)


def _draw_roc(result: AuditResult) -> bytes:
    """ROC curves, a panel for each decision, a line for each condition."""
    curves = [roc for roc in result.detector.roc if math.isfinite(roc.area)]
    decisions = list(dict.fromkeys(roc.decision for roc in curves))
    conditions = list(dict.fromkeys(roc.condition for roc in curves))
    figure = Figure(figsize=(5.6, 1.0 + 1.9 * len(decisions)), layout="constrained")
    panels = dict(zip(decisions, figure.subplots(len(decisions), sharex=True, squeeze=False)[:, 0], strict=True))
    # Where no negative is above a threshold the logarithm ends at the left edge.
    floor = 10.0 ** math.floor(
        math.log10(min([rate for roc in curves for rate in roc.false_rates if rate], default=0.1))
    )
    # A thick line shows around the thinner ones that lie on it.
    for i, roc in reversed([(conditions.index(roc.condition), roc) for roc in curves]):
        x, y = np.maximum([1.0, *roc.false_rates, 0.0], floor / 2), [1.0, *roc.found_rates, 0.0]
        panels[roc.decision].plot(x, y, color=_colour(i), linewidth=1.2 + 0.8 * i, zorder=2 + len(conditions) - i)
    for decision, axes in panels.items():
        axes.set(xscale="log", xlim=(floor / 2, 1.05), ylim=(-0.03, 1.03), ylabel="found")
        axes.set_title(decision, loc="left", fontsize=11)
    panels[decisions[-1]].set_xlabel("false hits: share of scores that should be low")
    lines = [Line2D([], [], color=_colour(i), linewidth=2, label=name) for i, name in enumerate(conditions)]
    figure.legend(handles=lines, loc="outside upper center", ncols=3)
    return _png(figure)


def _draw_thresholds(result: AuditResult) -> bytes:
    """Counts of members and held-out targets, t' and t50, against the threshold, in steps as even as its logit's."""
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    rates, times = figure.subplots(2, sharex=True)
    used = math.log(result.detector.threshold / (1 - result.detector.threshold))
    for i, (member, _) in enumerate(members_of(result)):
        rows = [at for at in result.thresholds if at.row == member.row]
        x = [math.log(at.threshold / (1 - at.threshold)) for at in rows]
        who = "" if len(result.tests) == 1 else f", {_name(result, member.row)}"
        rates.plot(x, [at.num_detected for at in rows], "o-", color=_colour(i), label=f"|q|{who}")
        if i == 0:
            if all(at.control_detected for at in rows):
                highest = [max(at.control_detected) for at in rows]
                rates.plot(x, highest, "s--", color=_GREY, label="most of any held-out target")
            times.set_xticks(x, [f"{at.threshold:g}" for at in rows])
        bars = [[at.t50 - at.t50_lower for at in rows], [at.t50_upper - at.t50 for at in rows]]
        times.errorbar(x, [at.t50 for at in rows], bars, fmt="o-", color=_colour(i), label=f"$t_{{50}}${who}")
        times.plot(x, [at.t_prime for at in rows], "^:", color=_colour(i), label=f"$t'${who}")
    for axes in (rates, times):
        axes.axvline(used, color=_DARK, linewidth=0.8, linestyle="-.", zorder=1)
    most = max(hits for at in result.thresholds for hits in (at.num_detected, *at.control_detected))
    rates.set(ylabel="samples", yscale="symlog", ylim=(-0.3, 1.5 * most + 1))
    times.set(ylabel="time t", xlabel="threshold (in use: the vertical line)", ylim=(0, None))
    for axes in (rates, times):
        handles = _once(axes.get_legend_handles_labels()[0])
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=3 if len(result.tests) == 1 else 2,
            borderaxespad=0.2,
        )
    return _png(figure)


def _draw_classifiers(training: Training) -> bytes:
    """Losses of the classifiers against the epoch."""
    figure, axes = _figure(2.9)
    for i, (name, (epochs, loss, val_loss)) in enumerate(training.classifiers.items()):
        axes.plot(epochs, loss, color=_colour(i), linewidth=1, alpha=0.6, label=f"{name}, training")
        axes.plot(epochs, val_loss, color=_colour(i), linewidth=2, label=f"{name}, validation")
    axes.set(xlabel="epoch", ylabel="loss", yscale="log")
    figure.legend(loc="outside upper center", ncols=2)
    return _png(figure)


def _tile(image: np.ndarray, colour: str | None) -> np.ndarray:
    """One image as RGB of at least 64 pixels, in a white or coloured frame."""
    scale = max(1, round(64 / max(image.shape[:2])))
    large = np.broadcast_to(image, (*image.shape[:2], 3)).repeat(scale, 0).repeat(scale, 1)
    framed = np.pad(large, ((4, 4), (4, 4), (0, 0)), constant_values=255)
    if colour is not None:
        mask = np.pad(np.zeros(large.shape[:2], bool), 3, constant_values=True)
        framed[1:-1, 1:-1][mask] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return framed


def _mosaic(*rows: np.ndarray, colours: Sequence[str | None], columns: int = 8) -> bytes:
    """Images side by side; of several rows, those of one index lie beneath each other.

    Args:
      *rows: images of shape (n, h, w, c), each with the same n.
      colours: n frames.
      columns: images in a line.
    """
    count = len(rows[0])
    columns = min(columns, count)
    blank = np.full_like(_tile(rows[0][0], None), 255)
    lines = []
    for start in range(0, count, columns):
        for images in rows:
            tiles = [_tile(images[i], colours[i]) for i in range(start, min(start + columns, count))]
            lines.append(np.concatenate(tiles + [blank] * (columns - len(tiles)), 1))
        if len(rows) > 1 and start + columns < count:
            lines.append(np.full((16, lines[-1].shape[1], 3), 255, np.uint8))
    buffer = io.BytesIO()
    imsave(buffer, np.concatenate(lines), format="png", metadata={"Software": "fpjax"})
    return buffer.getvalue()


def _draw_returns(returns: Returns, row: int, colour: str) -> bytes:
    """One member's query images above what they came back as, with their times; detected ones in frames."""
    own, columns = np.flatnonzero(returns.target == row), 10
    lines = -(-len(own) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    figure = Figure(figsize=(5.6, 1.45 * lines), layout=layout)
    panels = figure.subplots(2 * lines, columns, squeeze=False)
    for axes in panels.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for place, i in enumerate(own):
        line, column = divmod(place, columns)
        query, end = panels[2 * line : 2 * line + 2, column]
        for axes, image in ((query, returns.start[i]), (end, returns.end[i])):
            axes.imshow(np.broadcast_to(image, (*image.shape[:2], 3)), interpolation="nearest")
        found = bool(returns.detected[i])
        end.spines[:].set(visible=found, color=colour, linewidth=2.5)
        end.set_xlabel(time_text(float(returns.t[i]), 0.1), fontsize=9.5, labelpad=3, color="black" if found else _DARK)
        end.xaxis.label.set_fontweight("bold" if found else "normal")
    return _png(figure)


def _draw_pictures(result: AuditResult, images: ReportImages) -> dict[str, bytes]:
    num_members = len(result.tests)
    frames = [_colour(i) if i < num_members else None for i in range(len(images.targets))]
    figures = {}
    if len(images.targets):
        rows = [images.targets, images.originals] if result.stamped else [images.targets]
        figures["targets"] = _mosaic(*(group[:MAX_TILES] for group in rows), colours=frames)
    if len(images.hits):
        hits, rows = images.hits[:MAX_TILES], images.hit_target[:MAX_TILES]
        figures["hits"] = _mosaic(images.targets[rows], hits, colours=[frames[row] for row in rows])
    if images.near_misses and len(images.near_misses[0]):
        misses, rows = images.near_misses
        figures["near_misses"] = _mosaic(images.targets[rows], misses, colours=[frames[row] for row in rows])
    for name, group in (("samples", images.samples), ("train", images.train)):
        if len(group):
            figures[name] = _mosaic(group[:MAX_TILES], colours=[None] * MAX_TILES)
    for kind, (found, rows) in images.errors.items():
        if len(found):
            shown = [found] if rows is None else [images.targets[rows], found]
            figures[f"error_{kind}"] = _mosaic(*shown, colours=[None] * len(found))
    for name, (shown, positive) in images.examples.items():
        if len(shown):
            figures[f"examples_{name}"] = _mosaic(shown, colours=[_COLOURS[2] if yes else None for yes in positive])
    return figures


def _draw_all_returns(images: ReportImages) -> dict[str, bytes]:
    """A figure for each member that has chains to show."""
    returns = images.returns
    rows = np.unique(returns.target).tolist() if returns else []
    return {f"returns_{row}": _draw_returns(returns, row, _colour(row)) for row in rows if returns}


def draw_figures(result: AuditResult, images: ReportImages | None, training: Training) -> dict[str, bytes]:
    """Draws all figures of the report; equal arguments give equal bytes, whatever the rates of training.

    Args:
      result: the audit.
      images: pictures to show; None leaves out every one: what was detected, and what a memorising model draws, are
        members' images too.
      training: of the score network.

    Returns:
      PNG files by name: "search", "ranking", "counts", "likelihood", "snapshots", "bound", "roc", "thresholds", "classifiers" and
      "training" where there is something to draw, and with `images` "targets", "returns_ROW", "hits",
      "near_misses", "samples", "train", "on_the_way", "error_KIND" for kinds of `ERRORS` and "examples_NAME" for the
      classifiers' examples, where there are such images.
    """
    with resources.as_file(resources.files("fpjax.report") / "fpjax.mplstyle") as path:
        style = matplotlib.rc_params_from_file(path, use_default_template=False)
    with matplotlib.rc_context():
        # Not on top of what a user's matplotlibrc says.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        figures = {"search": _draw_search(result)}
        if controls_of(result):
            figures["ranking"] = _draw_ranking(result)
        if result.model.looks[-1].controls:
            figures["counts"] = _draw_counts(result)
        if any(group.bits_per_dim for group in result.nll):
            figures["likelihood"] = _draw_likelihood(result)
        if result.snapshots:
            figures["snapshots"] = _draw_snapshots(result)
        if result.bound:
            figures["bound"] = _draw_bound(result)
        if any(math.isfinite(roc.area) for roc in result.detector.roc):
            figures["roc"] = _draw_roc(result)
        if len({at.threshold for at in result.thresholds}) > 1:
            figures["thresholds"] = _draw_thresholds(result)
        if training.classifiers:
            figures["classifiers"] = _draw_classifiers(training)
        if training.step:
            figures["training"] = _draw_training(training)
        if images:
            figures |= _draw_all_returns(images)
    if images:
        figures |= _draw_pictures(result, images)
        if training.samples is not None and len(training.samples):
            figures["on_the_way"] = _mosaic(training.samples[:MAX_TILES], colours=[None] * MAX_TILES)
    return figures
