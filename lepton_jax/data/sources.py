"""One door to text: TFDS sets, prepared or made on first use, and a person's own files.

A spec is one or several sources joined by commas:

    tfds:NAME[:SPLIT]     a TFDS name (`tfds:glue/sst2`) or a set of `data/builders` (`tfds:movie_sentiment`);
                          SPLIT is TFDS's syntax (`train[:10%]`, `train+validation`), by default `train`
    text:PATH             plain text, one document per paragraph (blank lines separate them); it has no labels
    jsonl:PATH            one JSON object a line
    csv:PATH, tsv:PATH    a first line with column names; csv with the usual quotes, tsv without quoting

PATH is a file or a glob (`**` crosses folders). All files are UTF-8.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import glob
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lepton_jax.core.errors import UserError, nearest
from lepton_jax.data.cache import cache_folder, locked

NO_TEXT, NO_LABEL = "no text", "no label"  # reasons why a row is dropped


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts in the order of their sources, with a label each unless `labels` is None."""

    texts: list[str]
    labels: list[str] | None = None
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)  # reason -> rows that were read and left out
    sources: list[int] | None = None  # of each text, where several sources were joined: which one it is from

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: list[int]) -> Examples:
        """Returns the given rows, in the given order; `dropped` stays with the whole."""
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        sources = None if self.sources is None else [self.sources[row] for row in rows]
        return Examples([self.texts[row] for row in rows], labels, sources=sources)


def load(
    spec: str, text: str = "text", label: str | None = "label", cache: str = "", *, may_be_empty: bool = False
) -> Examples:
    """Returns all examples of a spec.

    Args:
      spec: sources as described at the top of this module.
      text: the column with the text. A TFDS set without it whose only text feature has another name uses that one.
      label: the column with the label, or None to read texts alone. A number is kept as its string.
      cache: see `cache_folder`.
      may_be_empty: whether a source without a usable row is an answer and no mistake.

    Raises:
      UserError: a source that does not exist, is not what it claims to be, lacks a column or holds no text.
    """
    parts = [_load_one(source, text, label, cache, may_be_empty) for source in split_spec(spec)]
    labels = None if label is None else [value for part in parts for value in part.labels or ()]
    dropped = sum((Counter(part.dropped) for part in parts), Counter())
    return Examples([value for part in parts for value in part.texts], labels, dict(dropped))


def split_spec(spec: str) -> list[str]:
    """Returns the single sources of a spec; a comma separates two only where a scheme follows it."""
    return [part.strip() for part in re.split(r",(?=\s*[a-z]+:)", spec)]


def own_splits(source: str, cache: str = "") -> list[str]:
    """Returns the names of the splits of a TFDS source that names none itself, and [] for any other source."""
    scheme, _, rest = source.partition(":")
    if scheme != "tfds":
        return []
    name, split = _parse_tfds(rest)
    return [] if split else list(_open_tfds(name, cache).info.splits)


def numeric_labels(examples: Examples) -> list[float]:
    """Returns the labels as floats.

    Raises:
      UserError: one is no finite number; the message shows it with its text.
    """
    numbers = []
    for text, label in zip(examples.texts, examples.labels or (), strict=True):
        try:
            number = float(label)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"label {label!r} of the text {text[:60]!r}: regression needs a finite number")
        numbers.append(number)
    return numbers


def _load_one(source: str, text: str, label: str | None, cache: str, may_be_empty: bool) -> Examples:
    scheme, _, rest = source.partition(":")
    if scheme == "tfds":
        rows = _read_tfds(rest, text, label, cache)
    elif scheme in _READERS:
        if scheme == "text" and label is not None:
            raise UserError(f"{source}: plain text has no labels; use jsonl:, csv:, tsv: or tfds: with a label column")
        rows = (row for path in _paths(source, rest) for row in _READERS[scheme](path, text, label))
    else:
        raise UserError(f"{source!r}: unknown kind of source, {nearest(scheme, ['tfds', *_READERS])}; write KIND:PATH")
    texts, labels, dropped = [], [], Counter()
    for value, tag in rows:
        value = value.strip()
        if not value:
            dropped[NO_TEXT] += 1
        elif label is not None and not tag:
            dropped[NO_LABEL] += 1
        else:
            texts.append(value)
            labels.append(tag)
    if not texts and not may_be_empty:
        reasons = "".join(f", {count} rows with {reason}" for reason, count in dropped.items())
        raise UserError(f"{source}: holds no {'text' if label is None else 'labelled text'}{reasons}")
    return Examples(texts, labels if label is not None else None, dict(dropped))


# Files. A reader yields (text, label) per row, the label None or "" where there is none.


def _paths(source: str, pattern: str) -> list[Path]:
    literal = Path(pattern).expanduser()
    found = [literal] if literal.exists() else [Path(path) for path in glob.glob(str(literal), recursive=True)]
    if not found:
        raise UserError(f"{source}: no such file, and no file matches it as a glob")
    files = sorted(path for path in found if path.is_file())
    if not files:
        raise UserError(f"{source}: is a folder; write {pattern.rstrip('/')}/* for the files in it")
    return files


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")  # a byte order mark is no text
    except UnicodeDecodeError as error:
        start = error.start + 3 * data.startswith(b"\xef\xbb\xbf")  # utf-8-sig counts after the mark
        line = data.count(b"\n", 0, start) + 1
        raise UserError(f"{path}:{line}: byte 0x{data[start]:02x} at offset {start} is not UTF-8") from error


def _read_text(path: Path, text: str, label: str | None) -> Iterator[tuple[str, None]]:
    del text, label
    for document in re.split(r"\n\s*\n", _decode(path).replace("\r\n", "\n")):
        if document.strip():  # blank lines at the ends of a file are no document
            yield document, None


def _read_jsonl(path: Path, text: str, label: str | None) -> Iterator[tuple[str, str | None]]:
    first = True
    for number, line in enumerate(_decode(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(row, dict):
            raise UserError(f'{where}: must be a JSON object such as {{"{text}": "..."}}, not {type(row).__name__}')
        _require(where, row, text, None if not first else label)  # a later row may lack its label
        first = False
        yield _string(where, text, row[text]), None if label is None else _string(where, label, row.get(label))


def _read_table(path: Path, text: str, label: str | None, **style: Any) -> Iterator[tuple[str, str | None]]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long document
    reader = csv.reader(io.StringIO(_decode(path), newline=""), strict=True, **style)
    names: list[str] | None = None
    try:
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            if not fields:
                continue
            if names is None:
                names = fields
                _require(where, names, text, label)
                continue
            if len(fields) != len(names):
                raise UserError(f"{where}: {len(fields)} fields, but the first line names {len(names)}")
            row = dict(zip(names, fields, strict=True))
            yield row[text], None if label is None else row[label].strip()
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error


def _read_csv(path: Path, text: str, label: str | None) -> Iterator[tuple[str, str | None]]:
    return _read_table(path, text, label)


def _read_tsv(path: Path, text: str, label: str | None) -> Iterator[tuple[str, str | None]]:
    return _read_table(path, text, label, delimiter="\t", quoting=csv.QUOTE_NONE)


_READERS = {"text": _read_text, "jsonl": _read_jsonl, "csv": _read_csv, "tsv": _read_tsv}


def _require(where: str, columns: Any, text: str, label: str | None) -> None:
    for field, name in (("text", text), ("label", label)):
        if name is not None and name not in columns:
            raise UserError(f"{where}: no column {name!r}; set data.{field} to one of {', '.join(map(repr, columns))}")


def _string(where: str, name: str, value: Any) -> str:
    """Returns a JSON value as text; null is the empty string."""
    if isinstance(value, (dict, list)):
        raise UserError(f"{where}: {name!r} must be a string or a number, not {type(value).__name__}")
    string = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    try:
        string.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {name!r} holds half of a surrogate pair, which is no text") from error
    return string


# TFDS.


def _parse_tfds(rest: str) -> tuple[str, str]:
    """Returns (name, split); the split is "" where none is named. A version (`glue/sst2:2.0.0`) belongs to the name."""
    match = re.fullmatch(r"([^:]+(?::[\d*]+\.[\d*]+\.[\d*]+)?)(?::(.*))?", rest)
    if match is None:
        raise UserError(f"tfds:{rest}: must be tfds:NAME or tfds:NAME:SPLIT")
    return match[1], match[2] or ""


def _open_tfds(name: str, cache: str) -> Any:
    """Returns the prepared builder of a set, preparing it first where that has not been done."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # registers GLUE and the like: TFDS's own search stops where TensorFlow is missing

    from lepton_jax.data import builders

    tfds.disable_progress_bar()
    folder = cache_folder(cache) / "tfds"
    own = {cls.name for cls in vars(builders).values() if isinstance(cls, type)}
    base = re.split("[/:]", name)[0]
    options: dict[str, Any] = {"cache": cache} if base in own else {}
    with locked(folder):  # around both: a builder looks for prepared files when it is made
        try:
            builder = tfds.builder(name, data_dir=str(folder), file_format="array_record", **options)
        except tfds.core.DatasetNotFoundError as error:
            close = difflib.get_close_matches(base, tfds.list_builders(with_community_datasets=False), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known besides TFDS's own: {', '.join(sorted(own))}"
            raise UserError(f"tfds:{name}: unknown TFDS set; {hint}") from error
        except (ValueError, AssertionError) as error:  # a configuration or a version that the set does not have
            reason = str(error).rpartition('}": ')[2].strip()  # after what TFDS says about its own arguments
            raise UserError(f"tfds:{name}: {' '.join(reason.split())}") from error
        try:
            builder.download_and_prepare()
        except UserError:
            raise
        except Exception as error:  # whatever a set's own downloading and parsing code may raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"tfds:{name}: cannot be prepared here ({type(error).__name__}: {reason})") from error
    return builder


def _read_tfds(rest: str, text: str, label: str | None, cache: str) -> Iterator[tuple[str, str | None]]:
    import numpy as np
    import tensorflow_datasets as tfds

    name, split = _parse_tfds(rest)
    builder = _open_tfds(name, cache)
    where, features = f"tfds:{name}", builder.info.features
    texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    if text not in features and len(texts) == 1:
        text = texts[0]
    _require(where, list(features), text, label)
    if text not in texts:
        raise UserError(f"{where}: the column {text!r} is no text; text columns: {', '.join(map(repr, texts))}")
    try:
        rows = builder.as_data_source(split=split or "train")
    except (ValueError, KeyError) as error:
        raise UserError(f"{where}: no split {split or 'train'!r}; it has {', '.join(builder.info.splits)}") from error
    classes = features[label] if label is not None and isinstance(features[label], tfds.features.ClassLabel) else None
    for index in range(len(rows)):
        row = rows[index]
        tag: Any = None if label is None else row[label]
        if classes is not None:
            tag = "" if tag < 0 else classes.int2str(int(tag))  # TFDS writes -1 where a test set hides its labels
        elif isinstance(tag, (bytes, np.bytes_)):
            tag = tag.decode("utf-8").strip()
        yield row[text].decode("utf-8"), None if tag is None else str(tag)
