"""README and docs: links lead somewhere, commands parse, code runs on names that exist, quotations are the code."""

import ast
import copy
import importlib
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import yaml
from absl import flags
from ml_collections import config_flags

from fpjax.cli import MEDMNIST, SHIPPED, config_path
from fpjax.run.config import make_config
from fpjax.run.pipeline import ALONE, FAIL_ON
from fpjax.run.stages import STAGES

from .conftest import ROOT
from .test_config import config_of

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
    ROOT.glob("docs/**/*.md")
)
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
# Of a command that a reader completes: what stands there, and something that parses in its place.
PLACEHOLDERS = {
    "--config=...": "--config=smoke",
    "--config=NAME": "--config=smoke",
    "--config.section.field=value": "--config.seed=1",
    "--config.seed=s": "--config.seed=1",
    "--config.data.seed=s": "--config.data.seed=1",
    "--stage=NAME,...": "--stage=data",
    "--fail_on=VERDICT": "--fail_on=leak",
    "--num_processes=N": "--num_processes=2",
    "--process_id=I": "--process_id=0",
}


def anchors(text):
    """Of the headings, as GitHub makes them."""
    heads = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?s)```.*?```", "", text))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def in_line(text):
    """What stands between single backticks, on one line."""
    return [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", re.sub(r"(?s)```.*?```", "", text))]


def defined_flags():
    """The program's own flags, unparsed."""
    values = flags.FlagValues()
    for flag in flags.FLAGS.get_flags_for_module("fpjax.cli"):
        if flag.name != "config":
            values[flag.name] = copy.deepcopy(flag)
    config_flags.DEFINE_config_file("config", config_path("phantom"), "", lock_config=True, flag_values=values)
    return values


def parse(line, monkeypatch):
    """Flags of a command line as the program reads them; raises where it would refuse."""
    words = [PLACEHOLDERS.get(word.strip("[]"), word.strip("[]")) for word in shlex.split(line, comments=True)]
    for i, word in enumerate(words):
        if word.startswith("--config="):
            words[i] = f"--config={config_path(word.removeprefix('--config='))}"
    # Where the config, even the default one, looks for what the line says of its fields, as soon as it is defined.
    monkeypatch.setattr("sys.argv", ["fpjax", *words])
    values = defined_flags()
    rest = values(["fpjax", *words])
    assert len(rest) == 1, rest
    unknown = {*values.stage, values.fail_on} - {*(stage.name for stage in STAGES), *ALONE, *FAIL_ON, ""}
    assert not unknown, unknown
    return values


def commands(text):
    """The flags of every line that starts the program."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    found = [re.search(r"(?:python launch\.py|python -m fpjax|(?<![/'\w])fpjax)(?= |$)(.*)", line) for line in lines]
    found += [re.match(r"(?:python launch\.py|python -m fpjax|fpjax)(?= -)(.*)", code) for code in in_line(text)]
    return [match[1] for match in found if match]


@each_page
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


@each_page
def test_commands_parse(page, monkeypatch):
    text = page.read_text()
    for line in commands(text):
        make_config(parse(line, monkeypatch).config)
    for flag in in_line(text):
        if re.match(r"--(config|stage|fail_on)[\w.]*=", flag):
            parse(flag, monkeypatch)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--config=nowhere", "a name that is not known here"),
        ("--config=phantom --config.score.num_step=5", "num_step"),
        ("--config.score.num_steps=many", "invalid literal"),
        ("--config.score.num_steps=-5", "got -5"),
        ("--stages=data", "Unknown command line flag 'stages'"),
        ("--stage=datum", "datum"),
        ("--fail_on=leaks", "leaks"),
        ("phantom", "phantom"),
    ],
)
def test_a_wrong_command_does_not_parse(line, message, monkeypatch):
    with pytest.raises(Exception, match=message):
        make_config(parse(line, monkeypatch).config)


@each_page
def test_flags_of_benchmarks_and_figures_exist(page):
    text = page.read_text()
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()] + in_line(text)
    for line in lines:
        if found := re.match(r"python -m (tests[\w.]*)(.*)", line):
            place = ROOT / Path(*found[1].split("."))
            file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
            assert file.is_file(), line
            for flag in re.findall(r"--\w+", found[2]):
                assert f'"{flag}"' in file.read_text(), line


@each_page
def test_fields_that_are_named_exist(page):
    fields, text = config_of("default"), page.read_text()
    if page.name == "CHANGELOG.md":
        pytest.skip("it names fields that are gone")
    for section, field in re.findall(r"`(?:--config\.)?(\w+)\.([a-z]\w*)(?:=[^`]*)?`", text):
        if section in fields and field not in ("json", "html"):
            assert field in fields[section], f"{section}.{field}"


@each_page
def test_python_blocks_are_code_whose_names_exist(page):
    if page.parent.name == "extending":
        pytest.skip("quotations")
    for block in blocks(page.read_text(), "python"):
        compile(block, str(page), "exec")
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                assert all(importlib.import_module(name.name) for name in node.names)
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fpjax":
                assert hasattr(importlib.import_module("fpjax"), node.attr), node.attr


def parses(block):
    """Whether this is whole code: statements, or entries of a dict."""
    for text in (textwrap.dedent(block), f"{{\n{block}\n}}"):
        try:
            return bool(ast.parse(text).body)
        except SyntaxError:
            pass
    return False


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/extending/*.md")), ids=lambda page: page.stem)
def test_quotations_are_the_code(page):
    text = page.read_text()
    quoted = re.findall(r"From `([^`]+)`:\n\n```(python|html)\n(.*?)```", text, re.S)
    assert len(quoted) == len(re.findall(r"(?m)^```\w", text))
    for name, language, block in quoted:
        assert f"{block.rstrip()}\n" in (ROOT / name).read_text(), f"{name}:\n{block}"
        assert language != "python" or parses(block), f"{name}:\n{block}"


@each_page
def test_files_that_are_named_exist(page):
    for name in re.findall(r"`((?:tests|docs|configs|fpjax)/[\w/.]+\.\w+)`", page.read_text()):
        assert (ROOT / name).exists() or page.name == "CHANGELOG.md", name


def test_the_map_has_every_folder_and_file_where_it_says():
    text = (ROOT / "docs" / "architecture.md").read_text()
    folders = re.findall(r"(?m)^\| `(\w+)/` \|", text)
    assert set(folders) == {path.parent.name for path in ROOT.glob("fpjax/*/__init__.py")} - {"configs"}
    for name in re.findall(r"`((?:\w+/)+\w+\.py)", text):
        assert (ROOT / "fpjax" / name).is_file() or (ROOT / name).is_file(), name


def test_readme_is_short_and_names_every_config():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    for name in {*SHIPPED, *MEDMNIST} - {"medmnist"}:
        assert f"`{name}`" in text, name


def test_every_page_is_in_the_contents():
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "extending" / "README.md").read_text()
    for page in ROOT.glob("docs/**/*.md"):
        assert f"{page.name})" in text or f"{page.name}#" in text, page.name


def test_the_citation_has_what_cff_asks_for():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(content)
    (paper,) = content["references"]
    assert paper["url"].endswith("2306.01363")


def test_pre_commit_runs_what_ci_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    steps = (ROOT / ".ci" / "run").read_text()
    for hook in hooks:
        assert hook["entry"] in steps
