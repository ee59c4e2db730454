"""The figures of the report."""

import dataclasses
import io

import matplotlib.image
import numpy as np
import pytest

from fpjax import audit, report
from fpjax.audit import verdict
from fpjax.report import figures as drawing

from .reported import CASES, CONTROLS, LEAK, LEAK_MODEL, MEMBER, PNG, TRAINED, pictures, with_figures


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return with_figures(request.param)


def test_figures_are_pngs_and_equal_twice(case):
    result, figures, _ = case
    again = report.draw_figures(*next(c for c in CASES.values() if c[0] is result))
    assert again == figures
    for name, content in figures.items():
        assert content.startswith(PNG), name
        pixels = matplotlib.image.imread(io.BytesIO(content))
        assert pixels.ndim == 3, name
        assert pixels.std() > 0.01, name


def test_figures_show_what_there_is():
    def drawn(name, *, show_members):
        return set(report.draw_figures(CASES[name][0], CASES[name][1] if show_members else None, CASES[name][2]))

    charts = {"search", "ranking", "counts", "likelihood", "training", "roc", "thresholds", "classifiers"}
    errors = {"error_fingerprint_false", "error_control", "examples_identity"}
    assert drawn("leak", show_members=True) == charts | errors | {
        "targets", "returns_0", "hits", "near_misses", "samples", "train", "on_the_way",
    }  # fmt: skip
    assert drawn("leak", show_members=False) == charts
    assert drawn("undecided", show_members=True) == {"search", "targets", "samples", "train"}
    assert drawn("densities", show_members=False) == charts | {"snapshots", "bound"}


def test_figures_follow_the_result():
    shifted = dataclasses.replace(
        LEAK,
        targets=[dataclasses.replace(MEMBER, t50=0.2, t50_rank=0.5), *LEAK.targets[1:]],
        model=dataclasses.replace(LEAK_MODEL, looks=[verdict.LookTest(2000, [7], CONTROLS, 0.01, 0.01)]),
        nll_members=[audit.MemberNll(0, 3.6, 0.05882)],
    )
    before, after = (report.draw_figures(result, None, TRAINED) for result in (LEAK, shifted))
    assert [name for name in before if before[name] != after[name]] == ["search", "ranking", "counts", "likelihood"]


def test_a_hit_lies_beneath_its_target():
    images = pictures(3, 2)._replace(hit_target=np.array([2, 0]))
    content = report.draw_figures(LEAK, images, TRAINED)["hits"]
    pixels = np.round(255 * matplotlib.image.imread(io.BytesIO(content))[..., 0])
    tile, scale = 72, 4
    for i, row in enumerate([2, 0]):
        shown = [pixels[4 + tile * j : 68 + tile * j : scale, 4 + tile * i : 68 + tile * i : scale] for j in (0, 1)]
        np.testing.assert_array_equal(shown, [images.targets[row, ..., 0], images.hits[i, ..., 0]])


def test_what_a_member_comes_back_as_is_drawn_with_what_is_detected():
    images = pictures(10, 9)
    returns = images.returns
    assert returns is not None

    def drawn(**changes):
        return drawing._draw_all_returns(images._replace(returns=returns._replace(**changes)))

    def colour(content, hexadecimal):
        pixels = np.round(255 * matplotlib.image.imread(io.BytesIO(content))[..., :3])
        return (pixels == [int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1).sum()

    few, more, none = (drawn(detected=np.arange(6) < n)["returns_0"] for n in (2, 4, 0))
    assert colour(none, "#0072b2") == 0
    assert 1.8 < colour(more, "#0072b2") / colour(few, "#0072b2") < 2.2
    for changes in ({"end": returns.end[::-1]}, {"start": returns.start[::-1]}, {"t": returns.t / 2}):
        assert drawn(**changes)["returns_0"] != few
    assert set(drawn(target=np.repeat([0, 2], 3))) == {"returns_0", "returns_2"}
