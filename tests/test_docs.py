"""README and docs: links lead somewhere, commands parse, code runs on names that exist, quotations are the code."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from fpjax.cli import SHIPPED, TABLE_2, config_path
from fpjax.run.pipeline import ALONE, FAIL_ON
from fpjax.run.stages import STAGES

from .conftest import ROOT
from .test_config import config_of

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(ROOT.glob("docs/**/*.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
FLAGS = {"config", "stage", "workdir", "dry_run", "fail_on", "coordinator", "num_processes", "process_id", "help"}


def anchors(text):
    """Of the headings, as GitHub makes them."""
    heads = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


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
def test_commands_parse(page):
    """Flags, configs, stages and fields of every command line."""
    fields = config_of("default")
    lines = [line for block in blocks(page.read_text(), "bash") for line in block.splitlines()]
    lines += re.findall(r"`((?:python launch\.py|fpjax) --[^`]*)`", page.read_text().replace("\n", " "))
    for line in lines:
        words = shlex.split(line.partition("launch.py")[2] or line.partition("fpjax ")[2], comments=True)
        for word in words:
            flag, _, value = word.removeprefix("--").partition("=")
            if not word.startswith("--"):
                continue
            assert flag.split(".")[0] in FLAGS, line
            if flag == "config" and value != "...":
                config_path(value.split("[")[0] if value != "NAME" else "smoke")
            if flag == "stage" and "NAME" not in value:
                assert set(value.split(",")) <= {*(stage.name for stage in STAGES), *ALONE}, line
            if flag == "fail_on" and value.islower():
                assert value in FAIL_ON
            if flag.startswith("config.") and flag != "config.section.field":
                _, *place = flag.split(".")
                at = fields
                for name in place:
                    assert name in at, line
                    at = at[name]


@each_page
def test_fields_that_are_named_exist(page):
    fields, text = config_of("default"), page.read_text()
    if page.name == "CHANGELOG.md":
        pytest.skip("it names fields that are gone")
    for section, field in re.findall(r"`(\w+)\.([a-z]\w*)(?:=[^`]*)?`", text):
        if section in fields and field not in ("json", "html"):
            assert field in fields[section], f"{section}.{field}"


@each_page
def test_python_blocks_are_code_whose_names_exist(page):
    for block in blocks(page.read_text(), "python"):
        if page.parent.name == "extending":
            continue
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fpjax":
                assert hasattr(importlib.import_module("fpjax"), node.attr), node.attr


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/extending/*.md")), ids=lambda page: page.stem)
def test_quotations_are_the_code(page):
    text = page.read_text()
    quoted = re.findall(r"From `([^`]+)`:\n\n```python\n(.*?)```", text, re.S)
    assert len(quoted) == text.count("```python")
    for name, block in quoted:
        assert block.rstrip("\n") in (ROOT / name).read_text(), name


@each_page
def test_files_that_are_named_exist(page):
    for name in re.findall(r"`((?:tests|docs|configs|fpjax)/[\w/.]+\.\w+)`", page.read_text()):
        assert (ROOT / name).exists() or page.name == "CHANGELOG.md", name
    for module in re.findall(r"python -m (tests[\w.]*)", page.read_text()):
        assert (ROOT / Path(*module.split("."))).with_suffix(".py").is_file(), module


def test_readme_is_short_and_names_every_config():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    for name in {*SHIPPED, *TABLE_2} - {"medmnist"}:
        assert f"`{name}`" in text, name


def test_every_page_is_in_the_contents():
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "extending" / "README.md").read_text()
    for page in ROOT.glob("docs/**/*.md"):
        assert f"{page.name})" in text or f"{page.name}#" in text, page.name


def test_the_citation_has_what_cff_asks_for():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(content)
    assert content["preferred-citation"]["url"].endswith("2306.01363")


def test_pre_commit_runs_what_ci_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    steps = (ROOT / ".ci" / "run").read_text()
    for hook in hooks:
        assert hook["entry"] in steps
