"""The pages of the package, made from its docstrings: `python -m sphinx -W -b html docs docs/_build`.

A page for each part is written into `docs/api` before a build, so that a new module appears by itself.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import comments  # noqa: E402
from sphinx.pycode import ModuleAnalyzer  # noqa: E402

import lepton_jax  # noqa: E402

project = "lepton_jax"
author = "the authors of lepton_jax"
version = release = lepton_jax.__version__

# No intersphinx: a build needs no network. Types of other libraries are therefore no links.
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
exclude_patterns = ["_build"]
default_role = "code"  # in docstrings, as in Markdown, `x` is code
smartquotes_action = "D"  # quotes stay what they are
html_theme = "furo"
html_title = "lepton_jax"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_default_options = {"undoc-members": True, "special-members": "__call__"}
add_module_names = False  # the section of a module has its name
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
MEMBERS: dict[tuple[str, str], set[str]] = {}  # what a class (module, name) has of its own; `write_pages` finds it
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
toc_object_entries = False  # Furo copies them all into every page with source: that took most of the time


def write_pages(folder: Path) -> None:
    """Writes a page for each part of the package: a folder, or all modules that are in none."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    parts: dict[str, list[str]] = {}
    for found in pkgutil.walk_packages(lepton_jax.__path__, "lepton_jax."):
        name = found.name.split(".")[1]
        own = found.ispkg or found.name.count(".") > 1
        if not any(part.startswith("_") for part in found.name.split(".")):
            parts.setdefault(name if own else "modules", []).append(found.name)
    for part, modules in parts.items():
        sections = [f"{part}\n{'=' * len(part)}\n", *map(section, modules)]
        (folder / f"{part}.rst").write_text("\n".join(sections), encoding="utf-8")


def section(name: str) -> str:
    """Returns the section of a module: its docstring, what it defines, and the names that it passes on."""
    module = importlib.import_module(name)
    source = Path(module.__file__ or "").read_text(encoding="utf-8")
    own, origins = comments.names(source), comments.imported(source)
    lines = [name, "-" * len(name), "", f".. automodule:: {name}", f"   :members: {', '.join(own)}" if own else ""]
    passed_on = [each for each in getattr(module, "__all__", ()) if each in origins]
    if passed_on:
        lines += ["", f"It also gives {', '.join(f':py:obj:`{each} <{origins[each]}>`' for each in passed_on)}."]
    analyzer = ModuleAnalyzer.for_module(name)
    analyzer.analyze()
    # As if they were the comments that Sphinx knows, `#:`.
    for path, paragraphs in comments.comments(source).items():
        scope, _, field = path.rpartition(".")
        analyzer.attr_docs[scope, field] = [line for text in paragraphs for line in (comments.as_rst(text), "")]
    for each, (docstring, members) in comments.classes(source).items():
        described = comments.attributes(docstring)[1]
        for field, text in described.items():
            analyzer.attr_docs[each, field] = [*text, ""]
        MEMBERS[name, each] = members | described.keys()
    return "\n".join(lines) + "\n"


def before_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Makes a block that is indented by four below a paragraph a literal one; attributes have their own places."""
    del app, name, options
    if what == "module":  # of which Sphinx takes the indentation away where all lines but the first have one
        lines[:] = [*(obj.__doc__ or "").splitlines(), ""]
    if what == "class":
        lines[:] = comments.attributes(lines)[0]
    for place in range(len(lines) - 2, 0, -1):
        above, line = lines[place - 1], lines[place + 1]
        if not lines[place].strip() and above.strip() and not above.startswith(" ") and line.startswith(" " * 4):
            lines[place : place + 1] = ["", "::", ""]


def describe(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Says what a class extends, and undoes what Python, dataclasses and Napoleon make of a docstring."""
    del app, options
    if what == "class":
        if has_fields(obj) and lines and lines[0].startswith(f"{obj.__name__}("):
            lines.clear()
        bases = [base for base in obj.__bases__ if base not in (object, tuple)]
        if bases:
            lines += ["", f"Extends {', '.join(map(link, bases))}.", ""]
    module = next((part for part in parents(name) if part in sys.modules), "")
    scope, _, field = name.removeprefix(f"{module}.").rpartition(".")
    if what in ("attribute", "data", "property"):  # of which Napoleon takes what is before a colon for a type
        found = ModuleAnalyzer.for_module(module).attr_docs.get((scope, field), [])
        lines[:] = found if what != "property" else (inspect.getdoc(obj) or "").splitlines()
    if what == "method" and not obj.__doc__:  # then what is there is of a class that it extends
        bases = getattr(sys.modules[module], scope).__mro__
        first = next((base for base in bases if getattr(vars(base).get(field), "__doc__", None)), object)
        if not first.__module__.startswith("lepton_jax."):
            lines.clear()


def link(base: type) -> str:
    """Returns a class as a link if it is ours, else by its full name."""
    full = f"{base.__module__}.{base.__qualname__}"
    return f":py:obj:`{base.__name__} <{full}>`" if full.startswith("lepton_jax.") else f"``{full}``"


def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leaves out what a class has from Flax or from `dataclasses`: what its own source does not name."""
    del obj, skipped, options
    members = MEMBERS.get((app.env.temp_data["autodoc:module"], app.env.temp_data.get("autodoc:class")))
    return True if what == "class" and members is not None and name not in members else None


def parents(name: str) -> list[str]:
    """Returns "a.b" and "a" of "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def sign(app: Any, what: str, name: str, obj: Any, options: Any, *signature: str | None) -> tuple[str | None, ...]:
    """Leaves out the arguments of a class that are its fields, and those of a protocol, which nobody calls.

    `signature` is that of the arguments and what is returned; JAX before 0.12 names the module of its arrays in it.
    """
    del app, name, options
    if what == "class" and (has_fields(obj) or getattr(obj, "_is_protocol", False)):
        return "", ""
    return tuple(text and text.replace("jaxlib._jax.", "") for text in signature)


def has_fields(obj: Any) -> bool:
    """Returns whether a class is a dataclass or a named tuple."""
    return dataclasses.is_dataclass(obj) or hasattr(obj, "_fields")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    write_pages(Path(app.srcdir) / "api")
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", describe)
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-skip-member", skip)
