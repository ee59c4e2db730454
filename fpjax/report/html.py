"""The report as one HTML file, without network and scripts."""

import base64
import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..audit.results import (
    AuditResult,
)
from ..audit.verdict import BELOW, INCONCLUSIVE, LEAK, MEMORISED, REPRODUCED
from .figures import MAX_TILES
from .images import ERRORS, Training, is_picture
from .numbers import MISSING, MOST_SHOWN, counts_text, fixed, one_in_text, percent, plural, small
from .rows import (
    MODEL_BASED,
    SCORE_NAMES,
    Row,
    bound_rows,
    canary_rows,
    control_counts_text,
    count_rows,
    density_text,
    detector_rows,
    diagnostic_rows,
    evaluation_rows,
    group_row,
    held_out_targets_text,
    likelihood_rows,
    make_row,
    members_of,
    model_based_rows,
    model_rows,
    pick,
    roc_rows,
    sampler_text,
    search_rows,
    self_rows,
    snapshot_rows,
    table_of,
    threshold_row,
    tolerance_text,
)
from .text import headline

# HTML

_CSS = """
:root { --ink: #1d2127; --soft: #565d66; --line: #d9dde2; --tint: #f5f6f8; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 54rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem; border-bottom: 2px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
p { margin: .6rem 0; }
a { color: #0b5c97; }
ul { padding-left: 1.3rem; margin: .5rem 0; }
.soft, figcaption { color: var(--soft); font-size: .92rem; }
.verdict { border: 1px solid var(--line); border-left: .5rem solid var(--mark); border-radius: .3rem;
  background: var(--wash); padding: .9rem 1.2rem; margin: 1.2rem 0; }
.verdict .word { font-size: 1.5rem; font-weight: 700; color: var(--mark); margin: 0 0 .4rem; }
.leak { --mark: #a3201b; --wash: #fdf3f2; }
.below { --mark: #1c6b3a; --wash: #f1f8f3; }
.unsure { --mark: #855400; --wash: #fdf7ea; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; margin: .6rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .38rem .7rem; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; }
tbody th { font-weight: 500; width: 34%; color: var(--soft); }
thead th { background: var(--tint); font-weight: 600; }
td { font-variant-numeric: tabular-nums; min-width: 6rem; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figure.chart img { width: 38rem; }
figure.pictures img { image-rendering: pixelated; }
figcaption { margin-top: .4rem; max-width: 40rem; }
@media (max-width: 40rem) {
  body { padding: 1rem .8rem 3rem; }
  th, td { padding: .35rem .4rem; }
  tbody th { width: 38%; }
}
@media print {
  body { max-width: none; font-size: 10.5pt; padding: 0; }
  figure, tr, .verdict { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  nav { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

_T, _T_PRIME, _T_ALPHA, _T50 = "<i>t</i>", "<i>t</i>′", "<i>t</i>′<sub>α</sub>", "<i>t</i><sub>50</sub>"
_QM, _Q, _CP, _CID = "<i>q<sub>M</sub></i>(<i>t</i>)", "|<i>q</i>|", "<i>c<sub>p</sub></i>", "<i>c</i><sub>id</sub>"
# Longest first; what is replaced has been escaped.
_SYMBOLS = {
    "t&#x27;_alpha": _T_ALPHA,
    "t&#x27;": _T_PRIME,
    "t50": _T50,
    "c_id+": _CID + "⁺",
    "c_p+": _CP + "⁺",
    "|q|": _Q,
    "+-": "±",
}


def _glossary(result: AuditResult) -> dict[str, str]:
    """The terms of this audit's report."""
    if not result.detector.marks:
        terms = {name: text for name, text in _GLOSSARY.items() if name not in (_CP, _CID)}
        terms[_Q] = "Plain samples that the detector accepts, that is, counted reproductions of the target."
    else:
        terms = dict(_GLOSSARY)
    if not result.stamped:
        del terms["fingerprint"]
        terms["target"] = (
            "An image that is looked for. A <em>member</em> is a training image; a <em>held-out target</em> is one of a "
            "held-out split that was never trained on."
        )
    return terms


_GLOSSARY = {
    "target": "An image with a fingerprint. Of <i>K</i> + <i>H</i> that were drawn from one pool and marked in the same "
    "way, lots made <i>K</i> the <em>members</em>, which were trained on, and <i>H</i> the <em>held-out targets</em>, which "
    "never were.",
    "controls": "Held-out targets. <em>Count controls</em> are only looked for among the plain samples, as every target "
    "is; <em>search controls</em>, some of them, have chains too, and so a " + _T50 + ".",
    "rank, <i>p</i>": "Had the members not been trained on, each order of members and held-out targets would be as likely "
    "as any other. <i>p</i> is the share of orders in which the members stand as high as they do, or higher: of one member "
    "(1 + held-out targets as high) / (<i>H</i> + 1), of several by the sum of their ranks. Holm’s adjusts for their number.",
    "below tolerance": "The limit of every member’s rate of reproduction, misses of the detectors allowed for, is below the "
    "rate that was stated as acceptable; no member is counted more often than every held-out target, and "
    + _T50
    + " does "
    "not reject. A bound, and no proof of anonymity.",
    "fingerprint": "The mark: a grey disc at a random place inside the image.",
    _T: "Time of the diffusion: 0 is the image, 1 is noise. Log-SNR is the same in terms that compare across SDEs.",
    _QM: f"Of <i>M</i> chains that start at the target, noised to {_T}, the fraction that is detected as the target "
    "after denoising.",
    _T_PRIME: f"The largest {_T} with a detection (the paper's measure, arXiv:2306.01363). It grows with the number of "
    "chains and levels, even where detections are chance.",
    _T_ALPHA: f"The largest {_T} such that here and at all lower times the rate is shown to exceed the floor, the "
    "larger of 1/<i>N</i> and the limit of the false-hit rate.",
    _T50: f"The {_T} at which {_QM} falls below one half. Any good denoiser returns an image from little noise, so it "
    "tells something only beside that of held-out targets.",
    _CP: f"The fingerprint classifier: does the image carry a disc? {_CP}⁺ counts the samples where it says so.",
    _CID: f"The identity classifier: is it this target? {_CID}⁺ counts the samples where it says so.",
    _Q: "Plain samples that both classifiers accept, that is, counted reproductions of the target.",
    "<i>n</i>, <i>N</i>": f"Plain samples drawn, and training images. A perfect memoriser reproduces each image at "
    f"the rate 1/<i>N</i>, so E{_Q} = <i>n</i>/<i>N</i>.",
    "bits/dim": "Negative log-likelihood (NLL) for each pixel and channel; fewer means that the model finds the image "
    "likelier.",
}


def _escape(text: str) -> str:
    return html.escape(text)


def _symbols(label: str) -> str:
    """A label of this module, escaped, with its symbols set."""
    text = _escape(label)
    for plain, symbol in _SYMBOLS.items():
        text = text.replace(plain, symbol)
    return text


def _table(rows: Iterable[Iterable[str]], heads: Sequence[str] = ()) -> str:
    """A table of HTML whose first column labels the rows."""
    cells = "".join(f'<th scope="col">{head}</th>' for head in heads)
    body = "".join(
        f'<tr><th scope="row">{label}</th>{"".join(f"<td>{value}</td>" for value in values)}</tr>\n'
        for label, *values in rows
    )
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _shown(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Rows of text as HTML."""
    return [
        (_symbols(row.label), *(_escape(cell).replace("+-", "±").replace("&gt;= ", "≥ ") for cell in row.cells))
        for row in rows
    ]


def _list(items: Iterable[str]) -> str:
    return f"<ul>\n{''.join(f'<li>{item}</li>' + chr(10) for item in items)}</ul>\n"


def _image(figures: dict[str, bytes], name: str, alt: str, caption: str) -> str:
    """A figure with its caption (HTML), or nothing where it was not drawn."""
    if name not in figures:
        return ""
    kind = "pictures" if is_picture(name) else "chart"
    data = base64.b64encode(figures[name]).decode()
    return (
        f'<figure class="{kind}"><img alt="{_escape(alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _answer(result: AuditResult) -> str:
    """What was asked and what was found, in plain language."""
    k, n, sampler, model = len(result.tests), result.num_samples, _escape(result.sampler), result.model
    h, image = model.num_count_controls, "image" if k == 1 else "images"
    the_images = f"the {'marked' if result.stamped else 'target'} {image}"
    planted = (
        f"{'was' if k == 1 else 'were'} given a synthetic fingerprint and planted in the training data; "
        f"{plural(h, 'further image')} got one too but {'was' if h == 1 else 'were'} never trained on, for comparison."
        if result.stamped
        else f"{'was' if k == 1 else 'were'} looked for as {'it is' if k == 1 else 'they are'}; "
        f"{plural(h, 'held-out image')} {'stands' if h == 1 else 'stand'} for comparison."
    )
    asked = (
        f"<strong>Asked:</strong> can the model <em>{_escape(result.name)}</em> reproduce one identifiable image of "
        f"its {result.num_train:,} training images? {'One image' if k == 1 else f'{k} images'}, drawn at random, {planted}"
    )
    counted = f"{counts_text(test.rate.hits for test in result.tests)} of {n:,} images drawn from it ({sampler})"
    seen = f"{counted} were recognised as {the_images}"
    if controls := model.looks[-1].controls:
        low, high = min(controls), max(controls)
        seen += f", and {low:,}{f' to {high:,}' if high > low else ''} as each image for comparison"
    bounded = f"{small(model.bound)}, {one_in_text(model.bound)},"
    limit = f"by {percent(result.settings.confidence)} limits"
    rate = f"The rate at which the model reproduces {'it' if k == 1 else 'any one of them'}"
    found, verdict, kinds = [], result.verdict.verdict, result.verdict.kinds
    if REPRODUCED in kinds:
        above = (
            ""
            if k == 1
            else f" {model.prevalence.hits} of the {k} {'was' if model.prevalence.hits == 1 else 'were'} recognised more often than all of those."
        )
        found.append(f"Yes. {seen}, more than chance explains.{above}")
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
        found.append(
            f"Not excluded is a rate of up to {bounded} {limit}; the tolerance is {small(model.tolerance)}, "
            f"{one_in_text(model.tolerance)}. "
            + (
                f"A rate of {small(power)} or more{'' if k == 1 else ' of every one of them'} would have been noticed with a "
                "probability of 80 %."
                if math.isfinite(power)
                else "Too few images were drawn, or too few stand for comparison, to notice any rate reliably."
            )
        )
    return f"<p>{asked} <strong>Found:</strong> {' '.join(found)}</p>\n"


def _limits(result: AuditResult) -> str:
    k, lower = len(result.tests), fixed(result.detector.sensitivity_lower, 2)
    return "<p><strong>What this does not mean:</strong></p>\n" + _list(
        [
            f"{'One target' if k == 1 else f'{k} targets'} drawn at random cannot speak for every training image: rare or "
            "repeated ones may be more exposed.",
            "The fingerprint is synthetic; marks that real images carry may be learned better or worse."
            if result.stamped
            else "No mark was planted. The comparison assumes that the held-out images differ from the training images in "
            "nothing but the training; another hospital, device or year breaks it.",
            f"These detectors judged. They are shown to recognise a fraction of at least {lower} of faithful reproductions, "
            "and the bound allows for as many misses. A poorer one may go unseen, and other eyes may recognise other traces.",
            f"This sampler drew ({_escape(sampler_text(result))}). Another one, or one steered towards the image, may draw it "
            "more often.",
            "“Below tolerance” bounds a rate and is no proof of anonymity; a leak says nothing about how often other images "
            "leak.",
        ]
    )


def _verdict(result: AuditResult) -> str:
    kind = {LEAK: "leak", BELOW: "below"}.get(result.verdict.verdict, "unsure")
    settle = result.verdict.to_settle
    return (
        f'<section id="verdict" class="verdict {kind}">\n<p class="word">{_escape(headline(result))}</p>\n'
        + _answer(result)
        + "<p><strong>Why:</strong></p>\n"
        + _list(map(_escape, result.verdict.reasons))
        + ("<p><strong>What would settle it:</strong></p>\n" + _list(map(_escape, settle)) if settle else "")
        + _limits(result)
        + "</section>\n"
    )


def _by_member(result: AuditResult, rows: Sequence[Row], first: str) -> str:
    """A table (HTML) with one column a member, or, where those are many, one line a member."""
    if len(result.tests) <= MOST_SHOWN:
        single = len(result.tests) == 1
        return _table(
            _shown(rows), [first, "Finding"] if single else [first, *(f"Member {t.row}" for t in result.tests)]
        )
    lines = [
        make_row(f"member_{test.row}", str(test.row), *(row.cells[i] for row in rows))
        for i, test in enumerate(result.tests)
    ]
    return _table(_shown(lines), ["Member", *(_symbols(row.label) for row in rows)])


def _evidence(result: AuditResult) -> str:
    counts, search = table_of(result, count_rows), table_of(result, search_rows)
    members = pick(counts, "num_detected", "rate", "expected", "count_controls", "count_rank")
    members += pick(search, "t50", "t50_controls", "t50_rank")
    used = pick(detector_rows(result), "gate_planted", "sensitivity_used", "false_used")
    return (
        "<h3>Tests of the model</h3>\n"
        + _table(_shown(model_rows(result)), ["Test", "Finding"])
        + "<h3>Members</h3>\n"
        + _by_member(result, members, "Evidence")
        + "<h3>Detectors</h3>\n"
        + _table(_shown(used), ["Measure", "Finding"])
        + f'<p class="soft">Samples, rates and times belong to the sampler ({_escape(sampler_text(result))}). The tests hold if '
        "members and held-out targets differ in nothing but the training; they assume nothing of how the detectors err."
        "</p>\n"
    )


def _search_section(result: AuditResult, figures: dict[str, bytes]) -> str:
    rows = table_of(result, search_rows)
    said = {row.id: f"{row.label}: {'; '.join(row.cells)}." for row in rows}
    curve = [said[name] for name in ("t_prime", "t_prime_identity", "t_prime_alpha", "t50") if name in said]
    return (
        f"<p>Each target is noised to a time {_T} and denoised again, many times. How often it comes back as the "
        f"target is {_QM}. Probabilities are those of the sampler: {_escape(sampler_text(result))}.</p>\n"
        + _image(
            figures,
            "search",
            f"Rate of return q_M(t) against time t. {' '.join(curve)}",
            f"Rate of return of each member with exact intervals ({percent(result.settings.confidence)}) and its "
            "non-increasing fit; fits of the held-out targets in grey. A line at 0 is left out, and where "
            f"{_T_PRIME} and {_T_ALPHA} agree, one hides the other.",
        )
        + _image(
            figures,
            "ranking",
            f"t50 of members and held-out targets on one axis. {said['t50_controls']} {said['t50_rank']}",
            f"{_T50} of members among the held-out targets, by the chains that all share. A triangle means "
            "“this or later”.",
        )
        + _by_member(result, rows, "Measure")
        + f'<p class="soft">{_T_PRIME} grows with the number of chains and levels, so its value alone says little. '
        f"{_T50} does not, but every good denoiser has one: what counts is how it compares with those of the held-out targets.</p>\n"
    )


def _counting_section(result: AuditResult, figures: dict[str, bytes]) -> str:
    rows = table_of(result, count_rows)
    said = "; ".join(cell for row in pick(rows, "num_detected") for cell in row.cells)
    controls = control_counts_text(result.model.looks[-1].controls)
    judges = "both detectors" if result.detector.marks else "the detector"
    return (
        f"<p>{result.num_samples:,} images were drawn as any user would, and each was shown to {judges}. "
        f"Probabilities are those of the sampler: {_escape(sampler_text(result))}. The upper end of the interval allows "
        "for reproductions that the detectors miss.</p>\n"
        + _image(
            figures,
            "counts",
            f"Counts of members and held-out targets on one axis. Members: {said}. Held-out targets: {controls}.",
            f"{_Q} of members among those of the held-out targets, of all samples that were drawn; equal ones are stacked.",
        )
        + _by_member(result, rows, "Measure")
        + f"<h3>{MODEL_BASED}</h3>\n"
        + _by_member(result, table_of(result, model_based_rows), "Test")
        + '<p class="soft">These rest on more than the comparison of equals, and are no part of the verdict. The paper’s '
        "test asks whether there are fewer reproductions than a perfect memoriser makes, of which the detectors see the "
        "share <i>s</i>, their sensitivity; it can do so with reproductions among the samples and is no test of safety. "
        "The leak test bounds the member’s false hits by those of any held-out target; the third takes the held-out "
        "targets’ counts to be those of gamma-distributed rates.</p>\n" + _likeness_table(result)
    )


def _likeness_table(result: AuditResult) -> str:
    """Pixel differences of the samples that are detected, and of the nearest that are not."""
    threshold = f"above {result.detector.threshold:g}"
    rows = [
        make_row(
            f"{name}_{i}",
            f"{name} {i}",
            f"{each.target}",
            # Those of a model that learned nothing can be hundreds.
            *(small(value) if value < 10 else f"{value:,.0f}" for value in (each.mse, each.mae)),
            threshold if each.score is None else small(each.score),
        )
        for name, group in (("detected", result.hits), ("near miss", result.near_misses))
        for i, each in enumerate(group, 1)
    ]
    if not rows:
        return ""
    return (
        "<h3>Distance in pixels</h3>\n"
        + _table(_shown(rows), ["Sample", "Member", "Mean squared difference", "Mean absolute difference", "Score"])
        + '<p class="soft">Of the samples detected as a member, the first ones; of all others, those nearest to a member: '
        "a near miss as close as a detected sample would be a copy that the detectors are blind to. Pixels run from -1 to "
        "1, one grey level is 0.0078.</p>\n"
    )


def _detectors_section(result: AuditResult, figures: dict[str, bytes], show_members: bool) -> str:
    confidence = percent(result.settings.confidence)
    roc, thresholds = roc_rows(result), [threshold_row(result, at) for at in result.thresholds]
    worst = "; ".join(f"{row.label}: area {row.cells[0]}" for row in roc)
    looked = len({at.threshold for at in result.thresholds})
    return (
        "<p>How often the detectors err, measured. False hits: real held-out images, and generated images that are "
        "taken for a held-out target, which the model never saw. Sensitivity: of each target’s copies the share that is "
        "seen, and the mean over targets; copies of one target are no independent looks. The audited memoriser is a model "
        "that is known to reproduce every training image, equally often: of it, the same audit must find the members."
        "</p>\n"
        + _table(_shown(detector_rows(result)), ["Measure", "Finding"])
        + "<h3>Audit of the auditor</h3>\n<p>Where the memoriser is not found, nothing that this audit says of the model "
        "counts, and the verdict is “inconclusive”. What is told of the held-out targets informs and vetoes nothing.</p>\n"
        + _table(_shown(self_rows(result)), ["Test", "Outcome"])
        + "<h3>Errors by condition</h3>\n"
        + _image(
            figures,
            "roc",
            f"ROC curves by decision and condition. {worst}.",
            "Of the images that show a target (a mark), the share that is found, against the share of false hits, at all "
            "thresholds. A line along the upper edge errs nowhere.",
        )
        + _table(_shown(roc), ["Decision, condition", f"ROC area ({confidence} interval)", "Found", "False hits"])
        + '<p class="soft">All but residue: real held-out images and the targets, each under a fresh mark where '
        "the detector looks for one. Residue: what chains from low noise return, where other targets’ heads are to stay "
        "silent. The intervals count each image once, however many heads judge it.</p>\n"
        + (
            "<h3>The answer at other thresholds</h3>\n"
            + _image(
                figures,
                "thresholds",
                "Counts of members and held-out targets, t' and t50 against the threshold of the detectors: the table beneath has the numbers.",
                "How the answer depends on the threshold above which a score counts.",
            )
            + _table(
                _shown(thresholds),
                [
                    "Threshold",
                    _Q,
                    "Most of any held-out target",
                    "<i>p</i>, all members",
                    "Sensitivity, low noise",
                    _T_PRIME,
                    _T50,
                ],
            )
            + f'<p class="soft">{plural(looked, "threshold")} {"was" if looked == 1 else "were"} looked at. Only the one in '
            "use is tested at the level; the others’ numbers are descriptive and not corrected for their number.</p>\n"
            if thresholds
            else ""
        )
        + _image(
            figures,
            "classifiers",
            "Losses of the classifiers in training and validation against the epoch.",
            "Losses of the classifiers in training and in validation.",
        )
        + (_error_pictures(result, figures) if show_members else "")
    )


def _error_pictures(result: AuditResult, figures: dict[str, bytes]) -> str:
    """What the detectors were trained on, and what they got wrong (paper, Fig. 7 and 8)."""
    shown = "".join(
        _image(
            figures,
            f"examples_{name}",
            f"Training images of the {name} classifier.",
            f"Training images of the {name} classifier as it sees them, positives in green frames.",
        )
        for name in ("fingerprint", "identity")
    )
    wrong = "".join(
        _image(figures, f"error_{kind}", f"Errors of the detectors: {text}", text) for kind, text in ERRORS.items()
    )
    return (f"<h3>What the classifiers learn from</h3>\n{shown}" if shown else "") + (
        f"<h3>Errors of the detectors</h3>\n{wrong or '<p>None.</p>' + chr(10)}"
    )


def _canaries_section(result: AuditResult) -> str:
    return (
        "<p>Each canary was put into the training data, or left out, by a fair coin of its own. How well one score, "
        "declared before it was looked at, tells the two sides apart bounds from below the ε of any (ε, δ) that the "
        "training could claim (Steinke, Nasr and Jagielski 2023). Few canaries can show little: a small ε here is no "
        "privacy.</p>\n" + _table(_shown(canary_rows(result)), ["Measure", "Finding"])
    )


def _likelihood_section(result: AuditResult, figures: dict[str, bytes]) -> str:
    if not result.nll and not result.nll_members:
        return "<p>No likelihoods were computed.</p>\n"
    members = "; ".join(f"member {each.row}: {fixed(each.bits_per_dim, 2)}" for each in result.nll_members)
    groups = [group_row(group) for group in result.nll]
    means = "; ".join(f"{row.label} {row.cells[0]}" for row in groups)
    over_training = snapshot_rows(result)
    return (
        f"<p>Descriptive, no part of the verdict. The density belongs to the {_escape(density_text(result))}, not to the sampler "
        "that was searched and counted "
        "above; with a learned score the two differ, and the numbers are not to be compared. Its size depends on "
        "<i>t</i><sub>min</sub>. Bits/dim are those of the bytes: a byte is 1/128 wide in model range, which adds "
        "log<sub>2</sub> 128 = 7 bits to −log<sub>2</sub> of the density of each pixel and channel. Images whose equation "
        "was not solved are counted and left out of every mean.</p>\n"
        + _image(
            figures,
            "likelihood",
            f"Bits per dimension by group. {members}; {means}.",
            "NLL of images by group (histograms over shared bins), each group’s mean, and the members (lines).",
        )
        + (_by_member(result, likelihood_rows(result), "Measure") if result.nll_members else "")
        + (_table(_shown(groups), ["Group", "NLL in bits/dim"]) if groups else "")
        + (
            "<h3>How these densities came about</h3>\n"
            + _table(_shown(diagnostic_rows(result)), ["Group", "Parts, noise and cost"])
            + '<p class="soft">The noise of one image is its own standard error, over repeats with other dequantisation '
            "and probes, or else over the probes; left out where neither was repeated. Evaluations are of the network with its "
            "divergence.</p>\n"
            if diagnostic_rows(result)
            else ""
        )
        + (
            "<h3>Over training</h3>\n"
            + _image(
                figures,
                "snapshots",
                f"Bits per dimension against the training step. {'; '.join(f'{row.label}: {row.cells[0]}' for row in over_training)}.",
                "NLL of the members, and means of the other groups, by length of training.",
            )
            + _table(_shown(over_training), ["Training", "NLL in bits/dim"])
            if result.snapshots
            else ""
        )
    )


def _bound_section(result: AuditResult, figures: dict[str, bytes]) -> str:
    if not result.bound:
        return "<p>No bound was computed.</p>\n"
    single, parts = len(result.bound) == 1, []
    for found in result.bound:
        cells = [
            make_row(
                f"cell_{i}",
                f"{cell.t_low:.3f} to {cell.t_high:.3f}",
                f"{fixed(cell.log_sup, 1)} at t = {cell.t_sup:.3f}",
                fixed(cell.log_term, 1),
                f"{fixed(cell.effective, 1)} of {cell.num_chains}",
            )
            for i, cell in enumerate(found.cells)
        ]
        parts += [
            "" if single else f"<h3>Member {found.row}</h3>\n",
            _table(_shown(bound_rows(found)), ["Measure", "Finding"]),
            _table(
                _shown(cells),
                ["Cell, t", "sup of log E[p(x′)], nats", "log of its term, nats", "Effective sample size"],
            )
            if cells
            else "",
        ]
    return (
        "<p>The paper’s upper bound (eq. 8–9), which it derives and does not compute: the target is noised to <i>t</i> and "
        "denoised to <i>x</i>′, whose density under the model is averaged; the largest average in each cell of <i>t</i> is "
        "weighted with the cell’s width in σ, the standard deviation of the noise, and summed up to "
        f"{_T_PRIME} or {_T_ALPHA}. <strong>It bounds no probability:</strong> a density has no upper limit and its unit is "
        "that of the pixels, so the sum grows as <i>t</i><sub>min</sub> falls. It compares models at one "
        "<i>t</i><sub>min</sub>, no more. The densities belong to the probability-flow ODE, the chains to the sampler.</p>\n"
        + _image(
            figures,
            "bound",
            f"Log of the mean density of chain ends against t. {'; '.join(f'{row.label}: {row.cells[0]}' for row in bound_rows(result.bound[0]))}.",
            "Mean density of the chains’ ends by the time they started from, in logarithms, and its sup over each cell.",
        )
        + "".join(parts)
        + '<p class="soft">An effective sample size near 1 says that one chain makes the average: more chains would raise '
        "it.</p>\n"
    )


def _pictures_section(result: AuditResult, figures: dict[str, bytes], show_members: bool) -> str:
    if not show_members:
        return (
            "<p>Pictures were left out: targets, originals, training images, samples and detected samples can all "
            "show training images.</p>\n"
        )
    k = len(result.tests)
    frame = "in the coloured frame" if k == 1 else "in coloured frames"
    return (
        f"<h3>Targets{' and their originals' if result.stamped else ''}</h3>\n"
        + _image(
            figures,
            "targets",
            f"{plural(k, 'member')} and {result.model.num_count_controls} held-out targets{' above their originals' if result.stamped else ''}.",
            f"Targets{' with their fingerprints, beneath each its original' if result.stamped else ''}. Members {frame} "
            f"come first (at most {MAX_TILES} targets).",
        )
        + _returns_pictures(result, figures)
        + "<h3>Samples detected as a member</h3>\n"
        + (
            _image(
                figures,
                "hits",
                "Member targets, each above a sample that was detected as it.",
                f"The target, beneath it the sample that was detected as it (at most {MAX_TILES}).",
            )
            or "<p>None.</p>\n"
        )
        + "<h3>Nearest misses</h3>\n"
        + (
            _image(
                figures,
                "near_misses",
                "Member targets, each above a sample that was not detected but is near it.",
                "Of the samples that were not detected, those nearest to a member in pixels, each beneath it: are the "
                "detectors blind to a copy?",
            )
            or "<p>None kept.</p>\n"
        )
        + "<h3>Plain samples</h3>\n"
        + (
            _image(
                figures,
                "samples",
                "Images drawn from the model.",
                f"Drawn from the model, as they came ({_escape(sampler_text(result))}).",
            )
            or "<p>None kept.</p>\n"
        )
        + "<h3>Training images</h3>\n"
        + (_image(figures, "train", "Images of the training set.", "From the training set.") or "<p>None kept.</p>\n")
    )


def _returns_pictures(result: AuditResult, figures: dict[str, bytes]) -> str:
    """What members come back as, by time (paper, Fig. 4)."""
    shown = "".join(
        _image(
            figures,
            f"returns_{test.row}",
            f"Member {test.row} noised to increasing times, each above what the same chain came back as.",
            f"Member {test.row} noised to the time beneath, and below it what one chain made of it; in frames and bold "
            "where that was detected as the member. Noise is cut to black and white.",
        )
        for test in result.tests
    )
    return f"<h3>What members come back as</h3>\n{shown}" if shown else ""


def _training_section(training: Training, figures: dict[str, bytes], show_members: bool) -> str:
    rates = [(training.images_per_s, "images"), (training.tflop_per_s, "TFLOP")]
    # Two digits: rates vary by some percent from one run to the next.
    speed = ", ".join(f"{float(f'{value:.2g}'):,g} {unit}/s" for value, unit in rates if math.isfinite(value))
    width = 1 / max(len(training.loss_by_t), 1)
    rows = [
        make_row(f"loss_{i}", f"{i * width:.1f} to {(i + 1) * width:.1f}", MISSING if loss is None else f"{loss:.3g}")
        for i, loss in enumerate(training.loss_by_t)
    ]
    return (
        _image(
            figures,
            "training",
            "Loss of the score network and norm of its gradient against the training step.",
            "Loss of the score network and norm of its gradient before clipping, means between two looks"
            + (f"; in the median {speed} on the machine that trained it." if speed else "."),
        )
        + (f"<h3>Loss by noise level at the end</h3>\n{_table(_shown(rows), ['t', 'Loss'])}" if rows else "")
        + (
            _image(
                figures,
                "on_the_way",
                "Samples drawn in the course of training.",
                f"Drawn from the averaged weights after {training.samples_step:,} training steps.",
            )
            if show_members
            else ""
        )
    ) or "<p>No loss was logged.</p>\n"


def _flat(value: Any, name: str = "") -> list[Row]:
    """Nested dictionaries as rows with dotted labels.

    >>> [(row.label, row.cells) for row in _flat({"a": {"b": 1}, "c": [2, 3]})]
    [('a.b', ('1',)), ('c', ('[2, 3]',))]
    """
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in _flat(item, f"{name}.{key}" if name else str(key))]
    return [make_row(name, name, value if isinstance(value, str) else json.dumps(value, default=str))]


def _method_rows(result: AuditResult) -> list[Row]:
    k = len(result.tests)
    chains = counts_text(sum(member.curve.num_chains) for member, _ in members_of(result))
    return [
        make_row("sampler", "sampler", result.sampler),
        make_row("sde", "SDE", result.sde),
        make_row("levels", "levels of the time grid", f"{result.num_levels:,}"),
        make_row("num_train", "training images, N", f"{result.num_train:,}"),
        make_row("num_samples", "plain samples, n", f"{result.num_samples:,}"),
        make_row("targets", "targets", f"{plural(k, 'member')}, {held_out_targets_text(result)}"),
        make_row("chains", "chains of the members", chains),
        make_row("density", "likelihood", density_text(result)),
        *evaluation_rows(result),
    ]


def _setting_rows(result: AuditResult) -> list[Row]:
    settings, looks = result.settings, result.model.planned_looks
    share = "" if len(looks) == 1 else f", shared by {len(looks)} looks: {settings.count_level / len(looks):.2g} each"
    rows = [
        make_row("level", "level of all tests together", f"{settings.level:g}"),
        make_row("count_level", "of it for counts", f"{settings.count_level:g}{share}"),
        make_row("t50_level", "of it for t50", f"{settings.t50_level:g}"),
        make_row("looks", "looks at the counts that were declared", f"n = {counts_text(looks)}"),
        make_row("tolerance", "tolerance", tolerance_text(result)),
        make_row("confidence", "confidence of intervals", percent(settings.confidence)),
    ]
    if result.canaries:
        rows.append(make_row("canary_score", "score of the canaries", SCORE_NAMES[settings.canary_score]))
    return rows


def _method_section(result: AuditResult) -> str:
    return (
        _table(_shown(_method_rows(result)))
        + "<h3>Settings of the verdict</h3>\n"
        + _table(_shown(_setting_rows(result)))
        + "<p>The verdict is <em>leak</em> if the counts (reproduced) or "
        + f"{_T50} (memorised) reject: members against held-out targets, by ranks. It is <em>below tolerance</em> if the upper "
        "limit of every member’s rate, over the lower limit of the detectors’ sensitivity, is below the tolerance, no member "
        f"is counted more often than every held-out target, and {_T50} does not reject. Else, and wherever the audited "
        "memoriser is not found, it is <em>inconclusive</em>.</p>\n"
        + (
            "<h3>Provenance</h3>\n"
            + _table([[_escape(row.label), *map(_escape, row.cells)] for row in _flat(result.provenance)])
            if result.provenance
            else ""
        )
    )


def _threat(result: AuditResult) -> str:
    known = "fingerprint" if result.stamped else "target or what identifies it"
    judge = "both detectors" if result.detector.marks else "the detector"
    items = [
        "<strong>Access:</strong> the attacker has the published model, weights included, and draws any number of samples; "
        "the training data stay private.",
        f"<strong>Knowledge:</strong> the attacker knows the {known}, so that a reproduced image identifies its person.",
        f"<strong>Success:</strong> a sample is recognised as the target by {judge}.",
        "<strong>The auditor</strong> knows more than the attacker, namely the target itself, and uses it for the search "
        "and the likelihood. What only the auditor can see shows memorisation, not yet an attack.",
        "<strong>Not covered:</strong> images near the target that the detectors reject, attributes of persons, models "
        "trained on conditions or texts, and changes of the model after publication.",
    ]
    return _list(items)


def to_html(result: AuditResult, figures: dict[str, bytes], training: Training, *, show_members: bool) -> str:
    """The report as one HTML file, without network and scripts.

    Args:
      result: the audit.
      figures: of `draw_figures`, embedded as data URIs.
      training: of the score network.
      show_members: False leaves out every picture, whatever `figures` holds.
    """
    sections = {
        "Evidence": _evidence(result),
        "Search": _search_section(result, figures),
        "Counting": _counting_section(result, figures),
        **({"Canaries": _canaries_section(result)} if result.canaries else {}),
        "Detectors": _detectors_section(result, figures, show_members),
        "Likelihood": _likelihood_section(result, figures),
        "Bound": _bound_section(result, figures),
        "Pictures": _pictures_section(result, figures, show_members),
        "Training": _training_section(training, figures, show_members),
        "Method and settings": _method_section(result),
        "Threat model": _threat(result),
        "Glossary": _table(list(_glossary(result).items())),
    }
    anchors = {title: title.lower().replace(" ", "-") for title in sections}
    contents = _list(f'<a href="#{anchor}">{title}</a>' for title, anchor in anchors.items())
    body = "".join(
        f'<section id="{anchors[title]}">\n<h2>{title}</h2>\n{content}</section>\n'
        for title, content in sections.items()
    )
    name = _escape(result.name)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Memorisation audit: {name}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f'<h1>Memorisation audit: {name}</h1>\n<p class="soft">Can this generative model reproduce one identifiable '
        f'training image?</p>\n{_verdict(result)}<nav aria-label="Contents">{contents}</nav>\n{body}</body>\n</html>\n'
    )
