"""The house rules that a test can see."""

import ast
import inspect
from pathlib import Path

import pytest

import fpjax

PACKAGE = Path(fpjax.__file__).parent
# A file imports only from lower numbers (data/ and models/ each read downward too, in the order given).
LAYERS = {
    "types": 0, "checks": 0, "progress": 0, "compilation": 0,
    "processes": 1, "devices": 1,
    "sde": 1, "fingerprint": 1, "stats": 1, "artifacts": 2,
    "models.layers": 1, "models.unet": 2, "models.resnet": 2,
    "data.phantom": 1, "data.files": 1, "data.remote": 2, "data.source": 3, "data.plant": 4,
    "augment": 2, "augmix": 2, "detection": 2, "score": 2, "sampling": 2, "oracle": 2,
    "diffusers": 3, "training": 3,
    "calibration": 3, "classifier": 4, "likelihood": 3, "chains": 3, "canaries": 2,
    "strategies": 2, "search": 4, "errors": 5, "count": 6, "bound": 4, "nearest": 5, "imported": 4,
    "api": 7, "verdict": 7, "audit": 8, "report": 9, "config": 9, "run": 10, "benchmark": 11, "preflight": 12, "pipeline": 13,
}  # fmt: skip
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def imports(path):
    """Modules of this package that a file imports, and top-level names of all others."""
    own, others = set(), set()
    parents = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = list(parents[: len(parents) - node.level + 1])
            if node.module:
                own.add(".".join([*base, node.module]))
            else:
                own |= {".".join([*base, alias.name]) for alias in node.names}
    return own, others


def test_every_file_has_a_layer():
    assert set(FILES) == set(LAYERS)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    own, others = imports(FILES[name])
    assert "fpjax" not in others  # relative imports within the package
    for other in own:
        assert LAYERS[other] < LAYERS[name], f"{name} imports {other}"


@pytest.mark.parametrize("name", FILES)
def test_only_config_knows_ml_collections_and_extras_stay_out(name):
    _, others = imports(FILES[name])
    assert not others & {"torch", "tensorflow", "tensorflow_datasets", "medmnist", "diffusers", "submitit"}
    assert "ml_collections" not in others or name in ("config", "pipeline")
    assert "absl" not in others


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_pickled_and_no_global_randomness(name):
    text = FILES[name].read_text()
    assert "import pickle" not in text
    assert "allow_pickle=True" not in text
    assert "np.random.seed" not in text
    assert "jax.random.PRNGKey" not in text


def test_public_functions_are_documented_and_take_keywords_for_options():
    import importlib

    for name in FILES:
        module = importlib.import_module(f"fpjax.{name}")
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or getattr(value, "__module__", "") != module.__name__:
                continue
            if inspect.isfunction(value):
                assert value.__doc__, f"{name}.{attribute}"
                for parameter in inspect.signature(value).parameters.values():
                    optional = parameter.default is not inspect.Parameter.empty
                    assert not optional or parameter.kind is parameter.KEYWORD_ONLY, f"{name}.{attribute}({parameter})"


def test_launch_is_short():
    assert len((PACKAGE.parent / "launch.py").read_text().splitlines()) <= 100
