"""The report that may leave the hospital: one page of aggregates, without pictures."""

import math
from importlib import resources

from markupsafe import Markup

from ..audit.public import LEAST, PublicResult
from ..audit.verdict import BELOW, LEAK
from .html import environment
from .numbers import MISSING, fixed, percent, plural, small
from .rows import Row, make_row


def _step_text(value: float) -> str:
    return f"about {value:.1f}" if math.isfinite(value) else MISSING


def _result_rows(public: PublicResult) -> list[Row]:
    """What was found."""
    counts, t50 = public.counts, public.t50
    canaries = public.canaries
    epsilon = MISSING if canaries is None or canaries.epsilon is None else f"at least {canaries.epsilon:g}"
    return [
        make_row(
            "members", "samples taken for members", f"{counts.members:,}; {counts.members_most:,} for one at most"
        ),
        make_row("held_out", "for held-out targets", f"{counts.held_out:,}; {counts.held_out_most:,} for one at most"),
        make_row("count_p", "test of the counts", f"p = {small(counts.p)}, level {counts.level:.3g}"),
        make_row("t50_members", "t50, median of the members", _step_text(t50.members)),
        make_row("t50_held_out", "t50, median of the held-out targets", _step_text(t50.held_out)),
        make_row("t50_p", "test of t50", f"p = {small(t50.p)}, level {t50.level:.3g}"),
        make_row("bound", "rate of reproduction of any member", f"at most {small(public.bound)}"),
        make_row("tolerance", "tolerance", small(public.tolerance)),
        make_row("power", "rate seen with a power of 80 %", small(public.detectable_rate)),
        *(
            [
                make_row("canaries", "canaries", f"{canaries.num_in} in, {canaries.num_out} out, by {canaries.score}"),
                make_row("area", "area under their ROC curve", fixed(canaries.area, 2)),
                make_row("epsilon", f"epsilon (delta {canaries.delta:g})", epsilon),
            ]
            if canaries
            else []
        ),
    ]


def _method_rows(public: PublicResult) -> list[Row]:
    """How it was found."""
    return [
        make_row("images", "training images", f"N = {public.num_train:,}"),
        make_row("targets", "targets", f"{plural(public.num_members, 'member')}, {public.num_held_out:,} held out"),
        make_row("samples", "plain samples", f"n = {public.counts.num_samples:,}"),
        make_row("sampler", "sampler", f"{public.sampler}, {plural(public.num_levels, 'level')}, {public.sde}"),
        make_row("detectors", "detectors", public.detectors),
        make_row("sensitivity", "their sensitivity", f"at least {fixed(public.sensitivity, 2)}"),
        make_row("false_rate", "false hits of a target", f"at most {small(public.false_rate)}"),
        *(make_row("self_test", f"audit of the auditor: {what}", how) for what, how in public.self_tests.items()),
        make_row("confidence", "intervals", percent(public.settings.confidence)),
    ]


def to_public_html(public: PublicResult) -> str:
    """The page, without network and scripts."""
    kinds = f" ({', '.join(public.kinds)})" if public.kinds else ""
    return (
        environment()
        .get_template("public.html")
        .render(
            public=public,
            css=Markup(resources.files("fpjax.report").joinpath("report.css").read_text()),
            headline=public.verdict.upper() + kinds,
            kind={LEAK: "leak", BELOW: "below"}.get(public.verdict, "unsure"),
            results=_result_rows(public),
            method=_method_rows(public),
            densities=[
                make_row("density", group.name, f"{group.images:,}", f"{group.mean_bits_per_dim:.2f}")
                for group in public.likelihood
            ],
            least=LEAST,
            provenance=[make_row("provenance", name, str(value)) for name, value in public.provenance.items()],
        )
    )
