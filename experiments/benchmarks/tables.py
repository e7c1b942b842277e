"""Tables in Markdown, as the README shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def show(lines: Sequence[Mapping[str, Any]]) -> None:
    """Prints lines of the same columns, name -> value, as a table."""
    print(f"| {' | '.join(lines[0])} |\n|{'---|' * len(lines[0])}")
    for line in lines:
        print(f"| {' | '.join(map(str, line.values()))} |")
    print(flush=True)
