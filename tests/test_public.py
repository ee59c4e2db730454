"""What may leave the hospital: whoever has the model, the seed and candidate images cannot tell from it which were planted."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest

from fpjax import report
from fpjax.audit import make_public
from fpjax.audit.public import DENSITY_STEP, LEAST, PROVENANCE, PublicResult

from .conftest import launch
from .reported import DENSITIES, LEAK, TWO, UNDECIDED

CASES = {"leak": LEAK, "two": TWO, "densities": DENSITIES, "undecided": UNDECIDED}


def numbers(text):
    """Every number in a text, as it stands there."""
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def matched(values, text):
    """The attack: candidates whose value, computed anew and exactly, stands in a text with four digits or more."""
    told = [number for number in numbers(text) if len(f"{abs(number):.10g}".replace(".", "").strip("0")) >= 4]
    return [value for value in values if any(math.isclose(value, number, rel_tol=1e-4) for number in told)]


@pytest.fixture(scope="module")
def planted():
    """17 candidates with densities of their own, the first 8 of them in the audit."""
    bits = np.random.default_rng(0).normal(3.5, 0.2, 17)
    group = dataclasses.replace(
        DENSITIES.nll[0], name="member", bits_per_dim=bits[:8].tolist(), mean=float(bits[:8].mean())
    )
    held_out = dataclasses.replace(group, name="held-out", bits_per_dim=[*bits[:8], *bits[:4]], mean=0.0)
    return bits, dataclasses.replace(DENSITIES, nll=[group, held_out])


def test_the_attack_finds_all_in_what_stays_and_none_in_what_leaves(planted):
    bits, result = planted
    private = json.dumps(report.to_json(result))
    assert matched(bits, private) == bits[:8].tolist()
    public = make_public(result)
    for text in (json.dumps(dataclasses.asdict(public)), report.to_public_html(public)):
        assert matched(bits, text) == []


def test_groups_that_are_too_small_are_left_out_and_the_others_rounded(planted):
    bits, result = planted
    found = make_public(result).likelihood
    assert [(group.name, group.images) for group in found] == [("held-out", 12)]
    assert found[0].mean_bits_per_dim == pytest.approx(np.mean([*bits[:8], *bits[:4]]), abs=DENSITY_STEP / 2 + 1e-9)
    few = dataclasses.replace(result.nll[1], bits_per_dim=[*bits[: LEAST - 1], math.nan])
    assert make_public(dataclasses.replace(result, nll=[few])).likelihood == []


def test_another_image_in_its_place_changes_nothing_but_steps(planted):
    """Of two audits that differ in one image's exact values, what leaves is the same within a step."""
    bits, result = planted
    other = dataclasses.replace(result.nll[1], bits_per_dim=[bits[16], *result.nll[1].bits_per_dim[1:]])
    before, after = (
        dataclasses.replace(result.targets[0], t50=t50, t50_rank=t50, t_prime=t50) for t50 in (0.4142, 0.4183)
    )
    result = dataclasses.replace(result, targets=[before, *result.targets[1:]])
    changed = dataclasses.replace(result, nll=[result.nll[0], other], targets=[after, *result.targets[1:]])
    assert matched([0.4142], json.dumps(report.to_json(result)))
    one, two = dataclasses.asdict(make_public(result)), dataclasses.asdict(make_public(changed))
    means = [group.pop("mean_bits_per_dim") for content in (one, two) for group in content["likelihood"]]
    assert abs(means[0] - means[1]) <= abs(bits[16] - bits[0]) / 12 + DENSITY_STEP
    assert one == two


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_page_says_the_answer_without_a_line_for_one_image(case):
    public = make_public(case)
    page = report.to_public_html(public)
    assert public.verdict.upper() in page
    assert "<img" not in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    for row in ("Member 0", "member 0", "t′"):
        assert row not in page
    assert public.provenance.keys() <= set(PROVENANCE)
    exact = [value for target in case.targets for value in (target.t50, target.log_snr_t50, target.log_snr_t_prime)]
    exact = [value for value in exact if math.isfinite(value)]
    assert not exact or matched(exact, json.dumps(report.to_json(case)))
    for text in (page, json.dumps(dataclasses.asdict(public))):
        assert matched(exact, text) == []


def test_fields_that_leave_are_named_one_by_one():
    """A new field of the audit does not leave by itself, and no field holds a list of images."""
    content = dataclasses.asdict(make_public(TWO))
    assert set(content) == {field.name for field in dataclasses.fields(PublicResult)}
    lists = {name for name, value in content.items() if isinstance(value, list)}
    assert lists == {"kinds", "reasons", "likelihood"}
    assert "seed" not in json.dumps(content)


def values_of(workdir):
    """Every number of single images that the stages know with four digits or more."""
    found = []
    densities = json.loads((workdir / "likelihood.json").read_text())["densities"]
    for name in ("nats", "prior_nats", "delta_nats", "bits_per_dim"):
        found += [value for value in densities[name] if value]
    return found


def test_a_run_writes_what_may_leave_into_a_folder_of_its_own(smoke, environment, tmp_path):
    workdir, done = smoke
    assert f"{workdir / 'public'}/ may leave the hospital, the rest may not" in done.stdout
    assert {path.name for path in (workdir / "public").iterdir()} == {"report.json", "report.html"}
    values = values_of(workdir)
    assert len(matched(values, (workdir / "report.json").read_text())) > len(values) / 5
    digests = [
        digest
        for name in ("data", "classifiers", "score")
        for digest in re.findall(r"[0-9a-f]{64}", (workdir / f"{name}.json").read_text())
    ]
    assert digests
    for path in (workdir / "public").iterdir():
        text = path.read_text()
        assert matched(values, text) == []
        assert not [digest for digest in digests if digest in text]
    # Not asked for any more, it does not stay behind.
    shutil.copytree(workdir, tmp_path / "run")
    flags = (f"--workdir={tmp_path / 'run'}", "--stage=report")
    assert launch(environment, *flags, "--config.report.public=False").returncode == 0
    assert not (tmp_path / "run" / "public").exists()
    assert launch(environment, *flags, "--config.report.public=True").returncode == 0
    for name in ("report.json", "report.html"):
        assert (tmp_path / "run" / "public" / name).read_bytes() == (workdir / "public" / name).read_bytes()
