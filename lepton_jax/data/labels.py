"""What a row's cells mean: a text or two, and a label of one of four kinds.

    classes   a name; a number or a truth value is kept as its string
    sets      a list of names, or in a table names with | between them; none of them is a label too
    numbers   a finite number
    spans     with a text: a list of {"start", "end", "label"} or [start, end, label]; with a list of words in
              place of the text: a list of their tags, such as B-PER, I-PER, O

Offsets count characters, and an end is exclusive.
"""

from __future__ import annotations

import datetime
import decimal
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lepton_jax.core.errors import UserError
from lepton_jax.data.spans import Span, from_tags, join_words
from lepton_jax.evaluate.lines import Kind

# What a cell of one value may be: JSON's, and those of tables with types.
_CELLS = (str, bytes, bool, int, float, decimal.Decimal, datetime.date, datetime.time)


class Columns(NamedTuple):
    """Which columns are read; "" for one that is not."""

    text: str = "text"
    pair: str = ""
    label: str = "label"

    @property
    def named(self) -> list[tuple[str, str]]:
        """Returns (field of the data section, column) of those that are read."""
        return [(field, name) for field, name in self._asdict().items() if name]


def parse_text(where: str, name: str, value: Any) -> str:
    """Returns a cell as text without white space around it; nothing is the empty string.

    Raises:
      UserError: it is a list or an object, or no UTF-8, or holds half of a surrogate pair.
    """
    if value is not None and not isinstance(value, _CELLS):
        raise UserError(f"{where}: {name!r} must be a string or a number, not {type(value).__name__}")
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: {name!r} holds the byte 0x{value[error.start]:02x}, not UTF-8") from error
    if value is None or isinstance(value, str):
        string = value or ""
    else:
        string = json.dumps(value) if isinstance(value, (bool, int, float)) else str(value)
    try:
        string.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {name!r} holds half of a surrogate pair, which is no text") from error
    return string.strip()


def parse_label(where: str, name: str, value: Any, kind: Kind) -> Any:
    """Returns the label of a cell: a str, a sorted tuple of str, or a float; None where there is none.

    Raises:
      UserError: it is not of the kind.
    """
    if kind == "sets":
        if value is None:
            return None
        names = value.split("|") if isinstance(value, str) else value
        if not isinstance(names, list):
            raise UserError(f"{where}: {name!r} must be a list of labels, not {type(value).__name__}")
        return tuple(sorted({parsed for each in names if (parsed := parse_text(where, name, each))}))
    string = parse_text(where, name, value)
    if not string:
        return None
    if kind == "classes":
        return string
    try:
        number = float(string)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {name!r} is {string[:60]!r}, and regression needs a finite number")
    return number


def parse_spans(where: str, columns: Columns, text: Any, label: Any) -> tuple[str, tuple[Span, ...] | None]:
    """Returns a text and its spans, in order; None for them where there is no label.

    Raises:
      UserError: the label is of another form than the text asks for, its tags are more or fewer than the words, or its
        spans overlap or leave the text.
    """
    if isinstance(text, list):
        words = [parse_text(where, columns.text, word) for word in text]
        joined, places = join_words(words)
        if label is None:
            return joined, None
        if not isinstance(label, list) or not all(isinstance(tag, str) for tag in label):
            raise UserError(f"{where}: {columns.label!r} must be a list of tags, one a word of {columns.text!r}")
        if len(label) != len(words):
            raise UserError(f"{where}: {len(label)} tags in {columns.label!r}, {len(words)} words in {columns.text!r}")
        try:
            return joined, from_tags(*_without_empty(places, label))
        except ValueError as error:
            raise UserError(f"{where}: {columns.label!r}: {error}") from None
    whole = "" if text is None else text if isinstance(text, str) else parse_text(where, columns.text, text)
    parse_text(where, columns.text, whole)
    shift = len(whole) - len(whole.lstrip())
    if label is None:
        return whole.strip(), None
    if not isinstance(label, list):
        raise UserError(f'{where}: {columns.label!r} must be a list of {{"start", "end", "label"}}, for '
                        f"{columns.text!r} is a text")  # fmt: skip
    spans = sorted(_span(where, columns.label, each, whole) for each in label)
    for (_, end, _), (start, _, _) in itertools.pairwise(spans):
        if start < end:
            raise UserError(f"{where}: {columns.label!r}: spans overlap at character {start}")
    return whole.strip(), tuple((start - shift, end - shift, name) for start, end, name in spans)


def _without_empty(places: list[tuple[int, int]], tags: list[str]) -> tuple[list[tuple[int, int]], list[str]]:
    """Returns places and tags of the words that have a character; a span cannot be of others."""
    kept = [row for row, (start, end) in enumerate(places) if start < end]
    return [places[row] for row in kept], [tags[row] for row in kept]


def _span(where: str, column: str, value: Any, text: str) -> Span:
    """Returns a span of a text, without white space at its ends."""
    if isinstance(value, dict):
        value = [value.get(name) for name in ("start", "end", "label")]
    good = isinstance(value, Sequence) and len(value) == 3 and isinstance(value[2], str) and value[2]
    if not good or not all(isinstance(bound, int) and not isinstance(bound, bool) for bound in value[:2]):
        raise UserError(f'{where}: {column!r}: {str(value)[:60]} is no {{"start": int, "end": int, "label": str}}')
    start, end, name = value
    if not 0 <= start < end <= len(text) or not text[start:end].strip():
        raise UserError(
            f"{where}: {column!r}: [{start}, {end}) is no part of the text, which has {len(text)} characters"
        )
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip()), name
