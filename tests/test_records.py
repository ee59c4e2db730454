"""Results as dataclasses: through a file and back, and what is refused."""

import dataclasses

import numpy as np
import pytest
from jaxtyping import Bool, Float, Int

from fpjax.core.errors import RequestError
from fpjax.core.records import load, save
from fpjax.core.store import read_json, write_json


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    rate: float | None


@dataclasses.dataclass(frozen=True)
class Whole:
    count: int
    hits: Int[np.ndarray, "looks targets"]
    nats: Float[np.ndarray, " images"]
    seen: Bool[np.ndarray, " images"]
    parts: list[Part]
    by_name: dict[str, Part]
    none: Part | None = None


def whole():
    nats = np.array([1.5, np.nan, -np.float32(0.1)])
    parts = [Part("a", 0.25), Part("b", None)]
    return Whole(
        3, np.array([[1, 2], [3, 4]]), nats, np.array([True, False, True]), parts, {"c": parts[0]}, Part("d", 1.0)
    )


def test_a_result_comes_back_as_it_was(tmp_path):
    path = tmp_path / "whole.json"
    save(path, whole(), {"data": "ab"})
    np.testing.assert_equal(vars(load(Whole, path)), vars(whole()))
    content = read_json(path)
    assert content["inputs"] == {"data": "ab"}
    assert content["nats"][1] is None
    save(tmp_path / "again.json", load(Whole, path), {"data": "ab"})
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_no_image_is_still_a_row_of_images(tmp_path):
    empty = dataclasses.replace(whole(), nats=np.zeros(0), seen=np.zeros(0, bool), none=None)
    save(tmp_path / "whole.json", empty, {})
    found = load(Whole, tmp_path / "whole.json")
    assert (found.nats.shape, found.nats.dtype, found.seen.dtype) == ((0,), np.float64, bool)
    assert found.none is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": "3"}, r"Expected `int`, got `str` - at `\$.count`"),
        ({"count": None}, r"at `\$.count`"),
        ({"hits": [1, 2]}, r"at `\$.hits`"),
        ({"hits": [[1.5, 2.0]]}, r"at `\$.hits`"),
        ({"seen": [1, 0]}, r"at `\$.seen`"),
        ({"nats": ["x"]}, r"at `\$.nats`"),
        ({"parts": [{"name": "a"}]}, r"missing required field `rate` - at `\$.parts\[0\]`"),
        ({"by_name": {"c": {"name": 1, "rate": 1.0}}}, r"by_name"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(tmp_path, changes, message):
    path = tmp_path / "whole.json"
    save(path, whole(), {})
    content = read_json(path)
    for name in ("digest", "schema_version"):
        del content[name]
    write_json(path, content | changes)
    with pytest.raises(RequestError, match=f"whole.json: got .*{message}.*, expected a Whole .*; fix: ") as error:
        load(Whole, path)
    assert "\n" not in str(error.value)
