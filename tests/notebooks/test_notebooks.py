"""Notebooks: each runs from top to bottom, as a reader would run it; and what is in git is fit to be read."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 900  # of one cell, where other work has most of the machine
FILE = "%%writefile"  # a cell that is a file


def cells(path: Path, kind: str = "code") -> list[str]:
    import nbformat

    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    return [cell.source for cell in book.cells if cell.cell_type == kind]


def code(path: Path) -> ast.Module:
    """Returns all code of a notebook but for files that it writes and IPython's own lines."""
    sources = [source for source in cells(path) if not source.startswith(FILE)]
    return ast.parse("\n".join(re.sub(r"(?m)^%.*$", "", source) for source in sources))


def test_all_six_are_here():
    assert [path.name[:2] for path in BOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_is_as_git_should_hold_it(path):
    import nbformat

    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        assert cell.metadata == {} and cell.get("execution_count") is None and not cell.get("outputs")
    names = [cell.id for cell in book.cells]
    assert names == [f"cell-{number:02}" for number in range(len(names))]
    assert set(book.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_first_installs_and_last_says_where_to_go_on(path):
    first, last, prose = cells(path)[0], cells(path, "markdown")[-1], cells(path, "markdown")
    assert first.startswith('SOURCE = ".."\n%pip install -q "{SOURCE}"') and "git+https" in prose[0]
    assert "## Where to go on" in last
    named = re.findall(r"`([\w/]+\.(?:py|ipynb))`", last.split("go on")[1])
    assert len(named) > 2
    for name in named:
        assert (ROOT / name).is_file() or (path.parent / name).is_file(), name


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_defines_nothing_and_has_short_cells(path):
    defined = [node for node in ast.walk(code(path)) if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.For))]
    assert not defined, [ast.unparse(node).splitlines()[0] for node in defined]
    for source in cells(path):
        assert len(source.splitlines()) <= (22 if source.startswith(FILE) else 16), source
        assert max(map(len, source.splitlines())) <= 120, source
    for source in cells(path, "markdown"):
        assert max(map(len, source.splitlines())) <= 120, source


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_imports_only_what_is_installed(path):
    """The first cell installs what setup.py requires; Jupyter brings IPython."""
    required = re.findall(r'^ {8}"([\w-]+)', (ROOT / "setup.py").read_text(), re.MULTILINE)
    known = {name.replace("-", "_") for name in required} | {"lepton_jax", "IPython"} | sys.stdlib_module_names
    names = set()
    for node in ast.walk(code(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert "lepton_jax" in names and names <= known
    drawn = cells(path)[1]
    assert drawn.startswith("%matplotlib inline")


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    """In a clone of its own, whose first cell installs into a folder of its own, without the dependencies."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    for name in ("lepton_jax", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "notebooks").mkdir()
    for name, value in {"PREFIX": str(tmp_path / "installed"), "NO_DEPS": "1", "IGNORE_INSTALLED": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("XLA_FLAGS")  # of the suite: eight devices, and programs that are quick to compile but slow
    monkeypatch.delenv("MPLBACKEND")
    book = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        book, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path / "notebooks")}}
    )
    client.execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert list((tmp_path / "installed").rglob("lepton_jax/attribution/gradients.py")), "the first cell installs"
    assert any("image/png" in output.get("data", {}) for output in outputs), "a plot is shown"
    assert not any(output.output_type == "error" for output in outputs)
