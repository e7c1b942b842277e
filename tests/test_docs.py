"""The pages made from docstrings: they build without a warning, have every module, and say what the source says."""

from __future__ import annotations

import html
import importlib.util
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lepton_jax"


@pytest.fixture(scope="session")
def site(made_once) -> Path:
    """The folder with `docs` and the `site` made from it, as the README's command makes it; `log` is what it said."""

    def build(folder: Path) -> None:
        shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("_build", "api", "__pycache__"))
        line = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", "site"]
        line[-2:] = [str(folder / name) for name in line[-2:]]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
        (folder / "log").write_text(f"{done.returncode}\n{done.stderr}")

    return made_once("docs", build)


@pytest.fixture(scope="module")
def inventory(site) -> dict[tuple[str, str], str]:
    """(kind, full name) -> the page and place of everything that the pages describe."""
    packed = (site / "site" / "objects.inv").read_bytes().split(b"\n", 4)[4]
    entries = [line.split(" ", 4) for line in zlib.decompress(packed).decode().splitlines()]
    return {(kind, name): place.replace("$", name) for name, kind, _, place, _ in entries}


def text_of(site: Path, page: str) -> str:
    """Returns what a page says, in one line; # ends the name of what is described."""
    article = (site / "site" / page).read_text().partition("<article")[2].partition("</article")[0]
    text = html.unescape(re.sub(r"<[^>]+>", "", article)).replace("[source]", "").replace("¶", " # ")
    return " ".join(text.split())


def test_the_site_builds_without_a_warning(site):
    assert (site / "log").read_text() == "0\n"


def test_every_public_module_is_on_the_page_of_its_part(site, inventory):
    index = (site / "site" / "index.html").read_text()
    found = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if len(parts) == 1 or any(part.startswith("_") for part in parts):
            continue
        page = parts[1] if (PACKAGE / parts[1]).is_dir() else "modules"
        assert inventory["py:module", ".".join(parts)].startswith(f"api/{page}.html#"), path
        assert f'href="api/{page}.html"' in index
        found += 1
    assert found > 150


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("py:function", "lepton_jax.core.weights.dot"),
        ("py:class", "lepton_jax.models.transformer.Transformer"),
        ("py:method", "lepton_jax.models.transformer.Transformer.__call__"),
        ("py:attribute", "lepton_jax.config.sections.DataConfig.isolate"),
        ("py:attribute", "lepton_jax.data.rows.TokenRows.lengths"),
        ("py:property", "lepton_jax.config.sections.Config.isolates"),
        ("py:data", "lepton_jax.data.packing.OPEN_ROWS"),
        ("py:function", "lepton_jax.stages.run"),
    ],
)
def test_known_names_are_there(inventory, kind, name):
    assert (kind, name) in inventory


def test_names_that_are_not_its_own_are_not(inventory):
    names = {name for _, name in inventory}
    assert "lepton_jax.models.transformer.Transformer.mesh" in names
    for name in ("models.transformer.Transformer.scope", "models.attention.Context.replace", "tasks.masked_lm.jax",
                 "data.packing._PATIENCE", "config.DataConfig", "train.step.Batch"):  # fmt: skip
        assert f"lepton_jax.{name}" not in names


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("config", "num_layer_groups: int = 0 # sets of parameters, shared by consecutive layers (ALBERT); 0: one a"),
        ("config", "isolate: bool = True # pretrain, \"packed\": False lets tokens attend to all documents of their"),
        ("config", "packs: bool # Whether a row may hold several documents."),
        ("data", "TokenRows( paths: Sequence[Path]"),
        ("data", "fingerprint # a hash of what they hold."),
        ("data", "OPEN_ROWS = 256 # more leave less padding: of news articles"),
        ("tasks", "cross_entropy( logits: Float[Array, '*n classes'], labels: Int[Array, '*n'], form: ClassLoss"),
        ("data", "training_batches( rows: Rows | Sequence[ndarray], batch_size: int,"),
        ("tasks", "Raises: UserError – masked language modelling with a tokenizer that has no mask token"),
        ("core", "take(ids: Int[Array, '...']) → Float[Array, '... N'] # Returns the rows ids in float32."),
        ("models", "class Embeddings # Token, learned-position and token-type embeddings"),
    ],
)  # fmt: skip
def test_pages_say_what_the_source_says(site, page, text):
    assert text in text_of(site, f"api/{page}.html")


def test_pages_say_nothing_that_others_say_of_their_classes(site):
    text = text_of(site, "api/models.html")
    assert "x_BxTxD: Array" in text and "Call self as a function" not in text and "submodule" not in text


def test_a_page_keeps_the_columns_of_a_block(site):
    page = (site / "site" / "api" / "data.html").read_text()
    assert re.search(
        r"token_ids +int32 \[B, T\]\nattention_mask  int32 \[B, T\]", html.unescape(re.sub("<[^>]+>", "", page))
    )


SOURCE = '''
LIMIT = 3  # of `rows`, *all*
_HIDDEN = 4  # not public

# Two of
# a kind:
PAIR: tuple[int, ...] = (  # noqa: E501
    1,
)  # beside  # fmt: skip
# Not of what comes below a gap.

GAP = 1


class Thing:
    """What it is.

    Attributes:
      size, other: of it,
        in units.

    More of it.
    """

    field: int = 0  # pyright: ignore[reportGeneralTypeIssues]
    # Above.
    both: int = 1  # beside

    def method(self): ...


def function(): ...
'''


@pytest.fixture(scope="module")
def comments():
    spec = importlib.util.spec_from_file_location("comments", ROOT / "docs" / "comments.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_comments_are_those_above_and_beside_a_name_and_not_for_tools(comments):
    assert comments.comments(SOURCE) == {
        "LIMIT": ["of `rows`, *all*"],
        "_HIDDEN": ["not public"],
        "PAIR": ["Two of a kind:", "beside"],
        "Thing.both": ["Above.", "beside"],
    }
    assert comments.as_rst("of `rows`, *all* a_b |c|") == r"of ``rows``, \*all\* a\_b \|c\|"


def test_names_are_those_that_a_source_defines(comments):
    assert comments.names(SOURCE + "from a.b import c as d, e\n") == ["LIMIT", "PAIR", "GAP", "Thing", "function"]
    assert comments.imported("import x\nfrom a.b import c as d, e\n") == {"d": "a.b.c", "e": "a.b.e"}
    docstring, members = comments.classes(SOURCE)["Thing"]
    assert members == {"field", "both", "method"}
    rest, described = comments.attributes(docstring)
    assert rest == ["What it is.", "", "More of it."]
    assert described == {"size": ["of it,", "in units."], "other": ["of it,", "in units."]}
    assert comments.attributes(["Nothing."]) == (["Nothing."], {})
