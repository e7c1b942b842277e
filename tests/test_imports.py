"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lepton_jax"

# A file imports from its own folder and from lower floors.
FLOORS = (
    {"core"},
    {"config", "disk", "chatter", "rendezvous", "positions", "cpus"},
    {"processes", "overrides"},
    {"workdir", "evaluate"},
    {"manifest", "results"},
    {"models", "data", "optim", "compress", "checkpoint", "report"},
    {"tasks", "hub", "recipes"},
    {"train", "infer", "attribution"},
    {"plan"},
    {"stages"},
    {"sweeps"},
    {"main"},
)


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(name: str) -> str | None:
    """Returns "train" of "lepton_jax.train.loop", None of the package itself."""
    return name.split(".")[1] if "." in name else None


def imports(source: str, path: Path = PACKAGE / "main.py") -> set[str]:
    """Returns the full name of everything that a source imports, at any depth: modules, and names from modules."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it leads"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(part: str) -> int:
    found = [number for number, parts in enumerate(FLOORS) if part in parts]
    assert found, f"{part}: no floor in {FLOORS}"
    return found[0]


def upward(path: Path, source: str) -> list[str]:
    """Returns the imports of a source that do not lead down."""
    own = own_part(path)
    parts = {part_of(name) for name in imports(source, path) if name.split(".")[0] == "lepton_jax"}
    return [part for part in sorted(filter(None, parts - {own, "__version__"})) if floor(part) >= floor(own)]


def test_every_part_has_one_floor():
    parts = {own_part(path) for path in files()}
    assert parts == set().union(*FLOORS) and sum(map(len, FLOORS)) == len(parts)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_lead_down(path):
    assert upward(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("core/trees.py", "import lepton_jax.config", ["config"]),
        ("models/heads.py", "def f():\n    from lepton_jax.data import cache", ["data"]),
        ("train/loop.py", "from lepton_jax import infer, workdir", ["infer"]),
        ("train/loop.py", "from lepton_jax.train import step\nimport jax", []),
        ("stages.py", "from lepton_jax import main", ["main"]),
    ],
)
def test_an_import_that_leads_up_or_aside_is_seen(file, source, wrong):
    assert upward(PACKAGE / file, source) == wrong


def test_training_knows_no_compression():
    """It gets int8, masks and the like as parameter trees, losses and gradient transformations."""
    seen = set().union(
        *(imports(path.read_text()) for path in files() if own_part(path) in ("train", "tasks", "optim"))
    )
    assert {part_of(name) for name in seen} >= {"core", "config"}
    assert not {part_of(name) for name in seen if name.startswith("lepton_jax.")} & {
        "compress",
        "adapt",
        "hub",
        "infer",
    }


def test_core_knows_neither_configs_nor_files_and_models_no_files():
    for path in files():
        names = imports(path.read_text())
        if own_part(path) in ("core", "models"):
            assert not {name.split(".")[0] for name in names} & {"pathlib", "os", "json", "shutil"}, path
        if own_part(path) == "core":
            assert "ml_collections" not in names, path


def test_nothing_imports_recipes_or_experiments():
    for path in files():
        assert not {name.split(".")[0] for name in imports(path.read_text())} & {"configs", "experiments", "tests"}, (
            path
        )


def test_flags_are_defined_in_one_file():
    having = [path for path in files() if any(name.startswith(("absl.flags", "absl.app")) or "config_flags" in name
                                              for name in imports(path.read_text()))]  # fmt: skip
    assert having == [PACKAGE / "main.py"]


def test_tensorflow_is_never_imported():
    for path in files():
        tops = {name.split(".")[0] for name in imports(path.read_text())}
        assert not tops & {"tensorflow", "torch"}, path


def test_no_file_is_two_files():
    sources = [*files(), *(ROOT / "configs").glob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    long = {str(path): length for path in sources if (length := len(path.read_text().splitlines())) > 400}
    assert not long and len(sources) > 40
    assert not [path for path in sources if path.stem in ("utils", "util", "helpers", "misc", "common")]
