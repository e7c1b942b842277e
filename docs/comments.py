"""What the source says beside a name: the comments of fields and constants, which this package documents them by."""

from __future__ import annotations

import ast
import io
import re
import tokenize

# For tools, not for people.
_TOOLS = re.compile(r"\s*#?\s*(noqa|fmt|pyright|type|ruff|pragma)\b\s*:.*|\s*#?\s*noqa\b.*")


def names(source: str) -> list[str]:
    """Returns the public names that a module defines by itself, in the order of the source."""
    found: dict[str, None] = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[node.name] = None
        found |= dict.fromkeys(_targets(node))
    return [name for name in found if not name.startswith("_")]


def imported(source: str) -> dict[str, str]:
    """Returns the names that a module imports from another one -> their full names."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in nodes for alias in node.names}


def comments(source: str) -> dict[str, list[str]]:
    """Returns "NAME" or "Class.field" -> the comments of what is assigned there: that above it, and that beside it."""
    above, beside = _by_line(source)
    found = {}

    def read(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                read(node.body, f"{prefix}{node.name}.")
            block, line = [], node.lineno - 1
            while line in above:
                block.insert(0, above[line])
                line -= 1
            own = [beside[line] for line in range(node.lineno, (node.end_lineno or node.lineno) + 1) if line in beside]
            paragraphs = [" ".join(part) for part in (block, own) if part]
            if paragraphs:
                found.update({prefix + name: paragraphs for name in _targets(node)})

    read(ast.parse(source).body, "")
    return found


def attributes(docstring: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Returns a docstring without its section "Attributes:", and what that section says of each name."""
    if "Attributes:" not in docstring:
        return docstring, {}
    start = docstring.index("Attributes:")
    end = next((n for n in range(start + 1, len(docstring)) if docstring[n][:1].strip()), len(docstring))
    found: dict[str, list[str]] = {}
    last: list[str] = []
    for line in docstring[start + 1 : end]:
        entry = re.match(r"  ([\w, ]+): (.*)", line)
        if entry:
            last = [entry[2]]
            found |= dict.fromkeys(re.split(r", *", entry[1]), last)
        elif line.strip():
            last.append(line.strip())
    return docstring[:start] + docstring[end:], found


def classes(source: str) -> dict[str, tuple[list[str], set[str]]]:
    """Returns the classes of a module -> the lines of its docstring, and the names that its body defines."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            members = {name for part in node.body for name in _targets(part)}
            members |= {part.name for part in node.body if isinstance(part, (ast.FunctionDef, ast.ClassDef))}
            found[node.name] = (ast.get_docstring(node) or "").splitlines(), members
    return found


def as_rst(text: str) -> str:
    """Returns a comment as reStructuredText that reads the same: what is in backticks is code, the rest plain text."""
    parts = re.split(r"`([^`]+)`", text)
    parts[::2] = [re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part}``" for part in parts[1::2]]
    return "".join(parts)


def _targets(node: ast.stmt) -> list[str]:
    """Returns the names that a statement assigns to."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _by_line(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Returns line -> comment, of comments that have their line to themselves, and of those beside code."""
    above, beside = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and (text := _TOOLS.sub("", token.string.removeprefix("#")).strip()):
            alone = not token.line[: token.start[1]].strip()
            (above if alone else beside)[token.start[0]] = text
    return above, beside
