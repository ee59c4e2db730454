"""The report as a page."""

import base64
import dataclasses
import html
import html.parser
import re
from importlib import resources

import jinja2
import pytest

from fpjax import report
from fpjax.audit import verdict
from fpjax.report import html as html_module
from fpjax.report.images import is_picture
from fpjax.report.rows import base
from fpjax.report.sections import SECTIONS
from fpjax.report.sections.base import Section
from fpjax.report.sections.verdict import VERDICT

from .reported import (
    BELOW,
    CASES,
    DETECTOR,
    LEAK,
    RATES,
    TWO,
    UNDECIDED,
    UNTRAINED,
    Page,
    at,
    page_of,
    with_figures,
)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return with_figures(request.param)


def test_html_is_well_formed_and_alone(case):
    text = page_of(case)
    page = Page(text)
    assert (page.faults, page.open) == ([], [])
    assert Page(text.replace("</section>", "", 1)).faults  # The parser does see a missing tag.
    assert not re.search(r"https?://|<script|@import|url\(", text)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} == set(page.ids) - {"verdict"}


def test_html_embeds_every_figure_with_an_alt_text(case):
    page, figures = Page(page_of(case)), case[1]
    assert all(len(image.get("alt", "")) > 20 for image in page.images)
    embedded = [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in page.images]
    assert sorted(embedded) == sorted(figures.values())


def test_html_leaves_pictures_out(case):
    figures = case[1]
    secret = {name for name in figures if is_picture(name)}
    assert secret >= {"targets", "samples", "train"}
    shown, hidden = (page_of(case, show_members=show) for show in (True, False))
    assert secret
    for name in secret:
        encoded = base64.b64encode(figures[name]).decode()
        assert encoded in shown
        assert encoded not in hidden
    assert len(Page(hidden).images) == len(figures) - len(secret)
    assert "Pictures were left out" in hidden
    assert "Pictures were left out" not in shown


def test_html_lists_how_near_samples_are():
    text = report.to_html(LEAK, {}, UNTRAINED, show_members=False)
    for row in (
        '<th scope="row">detected 1</th><td>0</td><td>0.012</td><td>0.046</td><td>above 0.5</td>',
        '<th scope="row">near miss 2</th><td>0</td><td>568</td><td>12</td><td>3.0e-5</td>',
    ):
        assert row in text, row
    assert "Distance in pixels" not in report.to_html(UNDECIDED, {}, UNTRAINED, show_members=False)


def test_html_shows_the_training():
    result, images, training = CASES["leak"]
    figures = report.draw_figures(result, images, training)
    text = report.to_html(result, figures, training, show_members=True)
    assert "in the median 1,200 images/s, 0.012 TFLOP/s on the machine" in text
    assert '<th scope="row">0.0 to 0.1</th><td>0.9</td>' in text
    assert f'<th scope="row">0.1 to 0.2</th><td>{report.MISSING}</td>' in text
    assert "after 20 training steps" in text
    # Another machine's rates change words alone; what the loss was changes the curve.
    slower = report.draw_figures(result, images, training._replace(images_per_s=1.0))
    assert slower == figures
    higher = report.draw_figures(result, images, training._replace(grad_norm=[2.0, 1.0, 0.5]))
    assert [name for name in figures if higher[name] != figures[name]] == ["training"]
    assert "No loss was logged" in report.to_html(result, {}, UNTRAINED, show_members=True)


def test_html_shows_what_the_detectors_err():
    result, images, training = CASES["leak"]
    figures = report.draw_figures(result, images, training)
    text = report.to_html(result, figures, training, show_members=True)
    row = '<th scope="row">joint, plain</th><td>0.990 (0.970 to 1.000)</td><td>0.984 (95 % interval'
    assert row in text
    assert "<td>1 of 3, too few to state a rate</td>" in text
    assert '<th scope="row">joint, residue</th><td>n/a</td>' in text
    assert '<th scope="row">0.5 (used)</th><td>9 of 2,000</td><td>3 of 2,000</td><td>0.010</td>' in text
    assert "3 thresholds were looked at. Only the one in use is tested" in text
    assert "not beneath it" not in text
    for kind in ("fingerprint_false", "control"):
        assert report.ERRORS[kind] in text
    assert report.ERRORS["missed"] not in text
    # Points of a curve and of a threshold move their figures, and no other.
    joint = dataclasses.replace(DETECTOR.roc[1], found_rates=RATES)
    for changed, name in (
        ({"detector": dataclasses.replace(DETECTOR, roc=[DETECTOR.roc[0], joint, *DETECTOR.roc[2:]])}, "roc"),
        ({"thresholds": [at(0.1, 31), *LEAK.thresholds[1:]]}, "thresholds"),
        ({"thresholds": [at(0.1, 30, most=7), *LEAK.thresholds[1:]]}, "thresholds"),
    ):
        other = report.draw_figures(dataclasses.replace(result, **changed), images, training)
        assert [key for key in figures if other[key] != figures[key]] == [name]
    silent = report.draw_figures(result, images._replace(errors={}, examples={}), training)
    assert "<h3>Errors of the detectors</h3>\n<p>None.</p>" in report.to_html(
        result, silent, training, show_members=True
    )


def test_html_escapes_values():
    text = report.to_html(UNDECIDED, {}, UNTRAINED, show_members=False)
    assert "&lt;b&gt;scans &amp; co&lt;/b&gt;" in text
    assert "few samples &lt;of&gt; it" in text
    assert "euler &lt;i&gt;" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<b>" not in text
    assert "euler <i>" not in text


def test_html_says_the_same_as_the_text(case):
    """Every row of the text is in the HTML, values letter by letter; a line for several members has each one's."""
    page = html.unescape(page_of(case))
    text = re.sub(r"^Members .*?in their order\.$", "", report.to_text(case[0]), flags=re.DOTALL | re.MULTILINE)
    values = re.findall(r"^  (?! |- ).{36}  (\S.*(?:\n {40}\S.*)*)", text, re.MULTILINE)
    assert len(values) > 25
    for value in values:
        for part in " ".join(value.split()).split(" | "):
            cell = part.replace("+-", "±").replace(">= ", "≥ ")
            # Of the members' own cells a shared one of the text is the beginning.
            assert re.search(rf"<td>{re.escape(cell)}(; the member's| of [\d,]+)?[^<]*</td>", page), cell


@pytest.mark.parametrize("name", CASES)
def test_labels_can_be_reworded_and_nothing_is_lost(name, monkeypatch):
    result, images, training = CASES[name]
    figures, row = report.draw_figures(result, images, training), report.Row
    before = report.to_html(result, figures, training, show_members=True)
    text = report.to_text(result)

    def cells(page):
        return re.findall("<td>.*?</td>", page)

    monkeypatch.setattr(base, "Row", lambda id, label, values: row(id, f"reworded {id}", values))
    after = report.to_html(result, figures, training, show_members=True)
    glossary = re.search('<section id="glossary">.*?</section>', after, re.DOTALL)[0].count('<th scope="row">')
    assert cells(after) == cells(before)
    assert (
        before.count("<tr>")
        == after.count("<tr>")
        == after.count('<th scope="row">reworded') + glossary + len(re.findall("<thead>", after))
    )
    assert len(re.findall("<img", after)) == len(re.findall("<img", before)) == len(figures)
    assert "counts of the held-out targets" in before
    assert "counts of the held-out targets" not in after
    for table in re.findall("<tbody>.*?</tbody>", after, re.DOTALL):
        ids = re.findall('<th scope="row">reworded (.*?)</th>', table)
        assert len(set(ids)) == len(ids), ids
    # The text wraps elsewhere; of several members it has a head and a note besides.
    rows = len(re.findall("^  (?! |- )", text, re.MULTILINE))
    reworded = len(re.findall("^  reworded", report.to_text(result), re.MULTILINE))
    assert reworded == rows if len(result.tests) == 1 else rows - 3 <= reworded < rows


@pytest.mark.parametrize(
    ("result", "word", "kinds", "answer"),
    [
        (
            LEAK,
            "leak",
            ["reproduced"],
            "Yes. 9 of 2,000 images drawn from it (ancestral) were recognised as the marked image,",
        ),
        (LEAK, "leak", ["memorised"], "reproduces it was not shown: 9 of 2,000"),
        (LEAK, "leak", ["reproduced", "memorised"], "reproduces it is at most 0.0092"),
        (
            TWO,
            "leak",
            ["reproduced"],
            "Yes. 9 and 0 of 2,000 images drawn from it (ancestral) were recognised as the marked",
        ),
        (TWO, "leak", ["reproduced"], "1 of the 2 was recognised more often than all of those"),
        (TWO, "leak", ["memorised"], "they come back from more noise than equal images never trained on"),
        (BELOW, "below tolerance", [], "at most 0.0020, about one sample in 510, by 95 % limits: that is below the"),
        (
            BELOW,
            "below tolerance",
            [],
            "below the tolerance of 0.0021, about one sample in 480. This is a bound, and no",
        ),
        (LEAK, "inconclusive", [], "The audit cannot say. 9 of"),
        (LEAK, "inconclusive", [], "Not excluded is a rate of up to 0.0092, about one sample in 110"),
        (TWO, "inconclusive", [], "A rate of 0.0031 or more of every one of them would have been noticed"),
    ],
)
def test_html_answers_in_words(result, word, kinds, answer):
    answers = ("Yes. ", "was not shown: ", "No leak was found", "The audit cannot say")
    result = dataclasses.replace(result, verdict=verdict.Verdict(word, kinds, ["because"], []))
    text = report.to_html(result, {}, UNTRAINED, show_members=False)
    assert answer in text
    assert [a in text for a in answers].count(True) == 1
    assert "is no proof of anonymity" in text
    assert "99 further images got one too" in text
    assert "{" not in text.partition("</style>")[2]  # No field was left unformatted.
    assert text.count(word.upper()) == 1


def test_a_section_more_is_one_object(tmp_path, monkeypatch):
    """A template and a `Section`: it stands in the contents and on the page, and its texts are escaped."""
    (tmp_path / "mine.html").write_text("<p>{{ result.name }} and {{ word }}</p>")
    made = html_module.environment()
    made.loader = jinja2.ChoiceLoader([made.loader, jinja2.FileSystemLoader(tmp_path)])
    monkeypatch.setattr(html_module, "environment", lambda: made)
    mine = Section("My own", "mine.html", lambda page: {"word": "<script>"})
    page = report.to_html(LEAK, {}, UNTRAINED, show_members=False, sections=(*SECTIONS, mine))
    assert '<li><a href="#my-own">My own</a></li>' in page
    assert '<section id="my-own">' in page
    assert " and &lt;script&gt;</p>" in page


def test_every_free_text_is_escaped():
    """Of names, samplers, reasons and provenance none gets through as HTML."""
    bad = "<script>alert(1)</script>"
    result = dataclasses.replace(
        LEAK, name=bad, sampler=bad, sde=bad, provenance={bad: bad, "imported": {"a": [bad]}},
        verdict=verdict.Verdict("inconclusive", [], [bad], [bad]),
        detector=dataclasses.replace(LEAK.detector, description=bad, advice=bad),
    )  # fmt: skip
    page = report.to_html(result, {}, UNTRAINED, show_members=False)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_templates_and_styles_are_found_where_the_package_is():
    files = resources.files("fpjax.report")
    assert "--ink" in files.joinpath("report.css").read_text()
    for section in (*SECTIONS, VERDICT):
        assert files.joinpath("templates", section.template).is_file()
