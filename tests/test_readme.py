"""The READMEs and the guide name files, fields and figures that are there, and say the same in both languages."""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from made import make_sweep, tuned

from lepton_jax.core.errors import UserError

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
README, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = [README, CHINESE, *GUIDE]
FOLDERS = ("", "lepton_jax", "tests", "experiments/benchmarks")  # that a name such as `core/weights.py` may be below

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(text: str) -> list[str]:
    """Returns the fenced code blocks of a page."""
    return re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Returns the inline code of a page."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def headings(text: str) -> list[tuple[int, str]]:
    """Returns (level, title) of each heading."""
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", prose(text), re.MULTILINE)]


def anchors(text: str) -> set[str]:
    """Returns the names that GitHub gives headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(text)}


def tables(text: str) -> list[list[list[str]]]:
    """Returns the cells of each row of each table, without the line below the head."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    rows = [[[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()] for table in found]
    return [[table[0], *table[2:]] for table in rows]


def numbers(cell: str) -> list[str]:
    return re.findall(r"[-+]?\d+(?:[.,]\d+)*[%x]?", cell)


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"page_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_something_to_check():
    assert len(GUIDE) >= 10 and len(README.read_text().splitlines()) < 350
    for page in GUIDE:
        title, question = page.read_text().split("\n\n")[:2]
        assert title.startswith("# ") and "?" in question, f"{page.name}: begins with what it answers"


@every_page
def test_links_lead_somewhere(page):
    text = prose(page.read_text())
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@every_page
def test_files_that_are_named_exist(page):
    known = Counter(path.name for folder in (*FOLDERS[1:], "configs", "experiments", "notebooks")
                    for path in (ROOT / folder).rglob("*") if path.is_file())  # fmt: skip
    for span in spans(page.read_text()):
        for name in re.findall(r"(?:[\w.]+/)*\w+\.(?:py|ipynb)\b|(?:lepton_jax|tests|docs)/[\w/.]*", span):
            if "NAME" in name or name.startswith(("mine/", "docs/_build")):  # of a reader's own, and made
                continue
            there = [folder for folder in FOLDERS if (ROOT / folder / name).exists()]
            assert there or ("/" not in name and known[name]), f"{name} in `{span}`"


@every_page
def test_recipes_and_experiments_that_are_named_exist(page):
    text = page.read_text()
    named = set(re.findall(r"\b(?:configs|experiments)/[\w/]+\.py\b", text)) - {"experiments/NAME.py"}
    assert named <= {str(path.relative_to(ROOT)) for path in ROOT.glob("*/**/*.py")}
    for name in re.findall(r"configs/(?:ablate|search)\.py:(\w+)", text):
        assert name == "NAME" or (ROOT / "experiments" / f"{name}.py").is_file(), name


@every_page
def test_commands_set_fields_that_there_are(page):
    text = page.read_text()
    lines = [line for block in blocks(text) for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    for command in [line for line in [*lines, *spans(text)] if "--config=configs/" in line]:
        name, arg = re.search(r"--config=configs/(\w+)\.py(?::(\w+))?", command).groups()
        config = load(ROOT / "configs" / f"{name}.py").get_config(*filter(None, [arg]))
        for path in re.findall(r"--config\.([\w.]+)=", command):
            part = config
            for field in path.split("."):
                assert field in part, f"{path} in {command}"
                part = part[field]


def test_every_recipe_is_in_the_table():
    for page, title in ((README, "Recipes"), (CHINESE, "配方")):
        first = " ".join(row[0] for table in tables(section(page.read_text(), title)) for row in table)
        listed = re.findall(r"`configs/(\w+)\.py(?:\[?:[^`]*)?`", first)
        assert sorted(listed) == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def test_every_sweep_is_among_the_ablations():
    text = section(README.read_text(), "Results").partition("### Ablations")[2]
    sweeps = [path for path in (ROOT / "experiments").glob("*.py") if "\nPARENT = " in path.read_text()]
    assert len(sweeps) >= 8
    for path in sweeps:
        assert f"`experiments/{path.name}`" in text, path.name


def test_every_notebook_and_page_is_listed():
    using, readme = (ROOT / "docs" / "guide" / "using.md").read_text(), README.read_text()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"`notebooks/{path.name}`" in using
    for page in GUIDE:
        assert f"(docs/guide/{page.name})" in section(readme, "Guide")


def test_what_the_guide_says_of_ablations_is_what_their_runs_say(tmp_path):
    publish = load(ROOT / "experiments" / "ablations.py").publish
    page, kept = tmp_path / "docs" / "guide" / "page.md", "# A page\n\n## A question?\n\n"
    page.parent.mkdir(parents=True)
    page.write_text(f"{kept}<!-- one -->\n\n| typed |\n\n<!-- / -->\n\nIn words.\n\n<!-- two -->\n<!-- / -->\n")
    with pytest.raises(UserError, match="has no folder of an experiment that"):
        publish(tmp_path / "runs", page)
    qualities = {"low": 0.6, "high": 0.9}
    make_sweep(tmp_path / "runs" / "one", {name: {} for name in qualities}, lambda name, seed: tuned(
        qualities[name], 10 * seed))  # fmt: skip
    assert publish(tmp_path / "runs", page) == ["one"]
    text = page.read_text()
    assert text.startswith(f"{kept}<!-- one -->\n\n|  | accuracy, % ↑") and "typed" not in text
    assert "| high | **" in text and "(../images/one/bars_finetune.accuracy.svg)" in text
    assert "Ran with: 7 min in all, 60 s to 80 s a run; 1 x cpu (cpu); Python 3.12, JAX 0.12; revision abc." in text
    assert text.endswith("\n\n<!-- / -->\n\nIn words.\n\n<!-- two -->\n<!-- / -->\n")
    assert (tmp_path / "docs" / "images" / "one" / "bars_finetune.accuracy.svg").is_file()
    publish(tmp_path / "runs", page)
    assert page.read_text() == text


def test_both_languages_have_the_same_commands_headings_and_figures():
    english, chinese = README.read_text(), CHINESE.read_text()
    assert english != chinese and "(README.zh.md)" in english and "(README.md)" in chinese
    assert blocks(english) == blocks(chinese) and len(blocks(english)) >= 3
    assert Counter(spans(english)) == Counter(spans(chinese))
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(chinese)]
    assert len(tables(english)) == len(tables(chinese)) >= 7
    for ours, theirs in zip(tables(english), tables(chinese), strict=True):
        assert [list(map(numbers, row)) for row in ours] == [list(map(numbers, row)) for row in theirs]


def test_figures_of_the_readme_are_those_of_the_guide():
    guide = {cell for page in GUIDE for table in tables(page.read_text()) for row in table for cell in row}
    results = section(README.read_text(), "Results").partition("### Ablations")[0]
    figures = [cell for table in tables(results) for row in table[1:] for cell in row[1:] if re.search(r"\d", cell)]
    assert len(figures) > 100
    assert not [cell for cell in figures if cell not in guide]


def test_the_picture_has_the_floors():
    svg = ElementTree.parse(ROOT / "docs" / "images" / "architecture.svg")
    space = "{http://www.w3.org/2000/svg}"
    groups = [group for group in svg.iter(f"{space}g") if group.get("class") == "floor"]
    drawn = [set((group.findtext(f"{space}text") or "").split(", ")) for group in groups]
    assert drawn[::-1] == list(load(ROOT / "tests" / "test_imports.py").FLOORS)
    parts = [text.text or "" for text in svg.iter(f"{space}text") if text.get("class") == "code"]
    for name in (name for part in parts for name in re.findall(r"\w+/\w*", part)):
        assert any((ROOT / "lepton_jax" / f"{name.rstrip('/')}{end}").exists() for end in ("", ".py")), name


def test_the_test_command_is_the_one_that_is_run_before_a_change_lands():
    pattern = re.search(r"grep -m 1 -E '(.+)' README\.md", (ROOT / ".ci" / "run").read_text())
    assert pattern
    found = [line for line in README.read_text().splitlines() if re.search(pattern[1], line)]
    assert len(found) == 1 and found[0].endswith("-m pytest")
