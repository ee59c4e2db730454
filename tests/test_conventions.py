"""The house rules that a test can see."""

import ast
import graphlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fpjax

PACKAGE = Path(fpjax.__file__).parent
ROOT = PACKAGE.parent
# A file imports only from folders that come earlier here and, in its own folder, without circles.
FOLDERS = (
    "configs",
    "core",
    "stats",
    "data",
    "models",
    "detectors",
    "diffusion",
    "engine",
    "studies",
    "audit",
    "report",
    "run",
    "cli",
    "__main__",
)
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def test_whatever_is_printed_is_escaped():
    """One module prints; all others go through it, for what they print can be a stranger's text."""
    for path in PACKAGE.rglob("*.py"):
        names = {
            call.func.id if isinstance(call.func, ast.Name) else ast.unparse(call.func)
            for call in ast.walk(ast.parse(path.read_text()))
            if isinstance(call, ast.Call)
        }
        assert path.name == "terminal.py" or not names & {"print", "sys.stderr.write", "sys.stdout.write"}, path


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


def test_every_file_lies_in_a_folder():
    assert {name.split(".")[0] for name in FILES} == {*FOLDERS} - {"configs"}


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    own, others = imports(FILES[name])
    assert "fpjax" not in others  # relative imports within the package
    folder = name.split(".")[0]
    for other in own:
        assert FOLDERS.index(other.split(".")[0]) <= FOLDERS.index(folder), f"{name} imports {other}"


def test_files_of_a_folder_do_not_import_each_other_in_circles():
    order = graphlib.TopologicalSorter({name: imports(path)[0] & set(FILES) for name, path in FILES.items()})
    assert len(list(order.static_order())) == len(FILES)


@pytest.mark.parametrize("name", FILES)
def test_only_config_knows_ml_collections_and_extras_stay_out(name):
    _, others = imports(FILES[name])
    assert not others & {"torch", "tensorflow", "tensorflow_datasets", "medmnist", "diffusers", "submitit"}
    assert "ml_collections" not in others or name in ("run.config", "run.pipeline", "cli")
    assert "absl" not in others or name == "cli"


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
    assert len((ROOT / "launch.py").read_text().splitlines()) <= 100


def too_long(text):
    """Whether a file has more than 450 lines and its first ten do not say "long because" of something."""
    lines = text.splitlines()
    return len(lines) > 450 and "long because" not in "\n".join(lines[:10]).lower()


def test_files_are_short_or_say_why_not():
    paths = [path for folder in ("fpjax", "tests", "configs") for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): path.read_text() for path in paths}
    assert [name for name, text in found.items() if too_long(text)] == []


def test_only_a_reason_in_the_first_lines_lets_a_file_be_long():
    body = "x = 1\n" * 451
    assert too_long(body)
    assert too_long(body + "# Long because it is.\n")
    assert not too_long("# Long because it is one table.\n" + body)
    assert not too_long("x = 1\n" * 450)


def test_benchmarks_and_figures_need_nothing_that_only_tests_have():
    script = "import sys, tests.benchmarks.timing; assert 'beartype' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)
