"""One door to text: TFDS sets, prepared or made on first use, and a person's own files.

A spec is one or several sources joined by commas:

    tfds:NAME[:SPLIT]     a TFDS name (`tfds:glue/sst2`) or a set of `data/builders` (`tfds:movie_sentiment`);
                          SPLIT is TFDS's syntax (`train[:10%]`, `train+validation`), by default `train`
    text:PATH             plain text, one document per paragraph (blank lines separate them); it has no labels
    jsonl:PATH            one JSON object a line
    csv:PATH, tsv:PATH    a first line with column names; csv with the usual quotes, tsv without quoting
    parquet:PATH          a Parquet table
    conll:PATH            one word and its tag a line, in the first and the last column; a blank line ends a text

PATH is a file or a glob (`**` crosses folders). Text files are UTF-8. What a label may be, `labels` says.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import Any

import numpy as np

from lepton_jax.core.errors import UserError, nearest
from lepton_jax.data import files, tfds_sets
from lepton_jax.data.labels import Columns, Kind, parse_label, parse_spans, parse_text

NO_TEXT, NO_LABEL = "no text", "no label"  # reasons why a row is dropped


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts, or pairs of them, in the order of their sources, with a label each unless `labels` is None."""

    texts: list[str]
    labels: list[Any] | None = None  # see `labels.Kind`
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)  # reason -> rows that were read and left out
    sources: list[int] | None = None  # of each text, where several sources were joined: which one it is from
    pairs: list[str] | None = None  # the second texts
    source_names: tuple[str, ...] = ()  # what the numbers in `sources` mean

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: list[int]) -> Examples:
        """Returns the given rows, in the given order; `dropped` stays with the whole."""

        def chosen(column: list[Any] | None) -> list[Any] | None:
            return None if column is None else [column[row] for row in rows]

        taken: dict[str, Any] = {name: chosen(getattr(self, name)) for name in ("labels", "sources", "pairs")}
        return Examples([self.texts[row] for row in rows], source_names=self.source_names, **taken)

    def some(self, count: int) -> Examples:
        """Returns at most so many of the rows, evenly spread over all of them."""
        return self.take(np.unique(np.linspace(0, len(self) - 1, count).astype(int)).tolist()) if len(self) else self


def load(
    spec: str,
    text: str = "text",
    label: str | None = "label",
    cache: str = "",
    *,
    pair: str = "",
    kind: Kind = "classes",
    may_be_empty: bool = False,
) -> Examples:
    """Returns all examples of a spec.

    Args:
      spec: sources as described at the top of this module.
      text: the column with the text. A TFDS set without it whose only text feature has another name uses that one.
      label: the column with the label, or None to read texts alone.
      cache: see `cache_folder`.
      pair: the column with a second text, or "".
      kind: of the labels.
      may_be_empty: whether a source without a usable row is an answer and no mistake.

    Raises:
      UserError: a source that does not exist, is not what it claims to be, lacks a column or holds no text, or a label
        of another kind.
    """
    columns = Columns(text, pair, label or "")
    parts = [_load_one(source, columns, kind, cache, may_be_empty) for source in split_spec(spec)]
    dropped = sum((Counter(part.dropped) for part in parts), Counter())
    return dataclasses.replace(join(parts), dropped=dict(dropped), sources=None)


def join(parts: list[Examples], names: tuple[str, ...] = ()) -> Examples:
    """Returns the examples of several parts, each with the number of its part, whose name is in `names`."""

    def all_of(name: str) -> list[Any] | None:
        columns = [getattr(part, name) for part in parts]
        there = [column for column in columns if column is not None]
        return [value for column in there for value in column] if there else None

    return Examples(
        [text for part in parts for text in part.texts],
        all_of("labels"),
        sources=[number for number, part in enumerate(parts) for _ in part.texts],
        pairs=all_of("pairs"),
        source_names=names,
    )


def split_spec(spec: str) -> list[str]:
    """Returns the single sources of a spec; a comma separates two only where a scheme follows it."""
    return [part.strip() for part in re.split(r",(?=\s*[a-z]+:)", spec)]


def _load_one(source: str, columns: Columns, kind: Kind, cache: str, may_be_empty: bool) -> Examples:
    scheme, _, rest = source.partition(":")
    if scheme == "tfds":
        rows = tfds_sets.read(rest, columns, cache)
    elif scheme in files.READERS:
        rows = files.read(source, scheme, rest, columns)
    else:
        known = ["tfds", *files.READERS]
        raise UserError(f"{source!r}: unknown kind of source, {nearest(scheme, known)}; write KIND:PATH")
    texts, pairs, labels, dropped = [], [], [], Counter()
    for where, row in rows:
        text, label = row[columns.text], row.get(columns.label)
        if kind == "spans" and columns.label:
            text, label = parse_spans(where, columns, text, label)
        else:
            text = parse_text(where, columns.text, text)
        pair = parse_text(where, columns.pair, row[columns.pair]) if columns.pair else ""
        if not text and not pair:
            dropped[NO_TEXT] += 1
            continue
        if columns.label and kind != "spans":
            label = parse_label(where, columns.label, label, kind)
        if columns.label and label is None:
            dropped[NO_LABEL] += 1
            continue
        texts.append(text)
        pairs.append(pair)
        labels.append(label)
    if not texts and not may_be_empty:
        reasons = "".join(f", {count} rows with {reason}" for reason, count in dropped.items())
        raise UserError(f"{source}: holds no {'labelled text' if columns.label else 'text'}{reasons}")
    return Examples(texts, labels if columns.label else None, dict(dropped), pairs=pairs if columns.pair else None)
