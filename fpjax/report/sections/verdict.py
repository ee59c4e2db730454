"""The answer in plain language, above all sections."""

import math
from typing import Any

from ...audit.results import AuditResult
from ...audit.verdict import BELOW, INCONCLUSIVE, LEAK, MEMORISED, REPRODUCED
from ..numbers import counts_text, fixed, one_in_text, percent, plural, small
from ..rows import sampler_text
from ..text import headline
from .base import Page, Section


def _planted(result: AuditResult) -> str:
    """What was done to the targets."""
    k, h = len(result.tests), result.model.num_count_controls
    if result.stamped:
        return (
            f"{'was' if k == 1 else 'were'} given a synthetic fingerprint and planted in the training data; "
            f"{plural(h, 'further image')} got one too but {'was' if h == 1 else 'were'} never trained on, for comparison."
        )
    return (
        f"{'was' if k == 1 else 'were'} looked for as {'it is' if k == 1 else 'they are'}; "
        f"{plural(h, 'held-out image')} {'stands' if h == 1 else 'stand'} for comparison."
    )


def _seen(result: AuditResult) -> str:
    """How many samples were recognised."""
    image = "image" if len(result.tests) == 1 else "images"
    counted = f"{counts_text(test.rate.hits for test in result.tests)} of {result.num_samples:,} images drawn from it"
    seen = f"{counted} ({result.sampler}) were recognised as the {'marked' if result.stamped else 'target'} {image}"
    if controls := result.model.looks[-1].controls:
        low, high = min(controls), max(controls)
        seen += f", and {low:,}{f' to {high:,}' if high > low else ''} as each image for comparison"
    return seen


def _found(result: AuditResult) -> list[str]:
    """Sentences of the answer."""
    k, model, seen = len(result.tests), result.model, _seen(result)
    the_images = f"the {'marked' if result.stamped else 'target'} {'image' if k == 1 else 'images'}"
    bounded = f"{small(model.bound)}, {one_in_text(model.bound)},"
    limit = f"by {percent(result.settings.confidence)} limits"
    rate = f"The rate at which the model reproduces {'it' if k == 1 else 'any one of them'}"
    found, verdict, kinds = [], result.verdict.verdict, result.verdict.kinds
    if REPRODUCED in kinds:
        above, were = model.prevalence.hits, "was" if model.prevalence.hits == 1 else "were"
        more = "" if k == 1 else f" {above} of the {k} {were} recognised more often than all of those."
        found.append(f"Yes. {seen}, more than chance explains.{more}")
    if MEMORISED in kinds:
        found.append(
            f"The model gives away that it was trained on {the_images}: buried in noise and denoised again, "
            f"{'it comes' if k == 1 else 'they come'} back from more noise than equal images never trained on."
        )
        if REPRODUCED not in kinds:
            found.append(f"That sampling reproduces {'it' if k == 1 else 'them'} was not shown: {seen}.")
    if verdict == LEAK:
        found.append(f"{rate} is at most {bounded} {limit}.")
    if verdict == BELOW:
        found.append(
            f"No leak was found. {seen}. {rate} is at most {bounded} {limit}: that is below the tolerance of "
            f"{small(model.tolerance)}, {one_in_text(model.tolerance)}. This is a bound, and no proof of anonymity."
        )
    if verdict == INCONCLUSIVE:
        found.append(f"The audit cannot say. {seen}.")
        if any(test.vetoes and test.possible and not test.passed for test in result.self_tests):
            found.append("It failed where the answer is known, so that none of its numbers can be relied on.")
        power = model.detectable_rate
        noticed = (
            f"A rate of {small(power)} or more{'' if k == 1 else ' of every one of them'} would have been noticed with a "
            "probability of 80 %."
            if math.isfinite(power)
            else "Too few images were drawn, or too few stand for comparison, to notice any rate reliably."
        )
        found.append(
            f"Not excluded is a rate of up to {bounded} {limit}; the tolerance is {small(model.tolerance)}, "
            f"{one_in_text(model.tolerance)}. {noticed}"
        )
    return found


def _context(page: Page) -> dict[str, Any]:
    result = page.result
    return {
        "k": len(result.tests),
        "kind": {LEAK: "leak", BELOW: "below"}.get(result.verdict.verdict, "unsure"),
        "headline": headline(result),
        "planted": _planted(result),
        "found": _found(result),
        "sensitivity": fixed(result.detector.sensitivity_lower, 2),
        "sampler": sampler_text(result),
    }


VERDICT = Section("Verdict", "verdict.html", _context)
