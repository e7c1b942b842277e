"""A person's own files, row by row: (where, {column: cell}), so that a message can name file and line."""

from __future__ import annotations

import csv
import glob
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lepton_jax.core.errors import UserError
from lepton_jax.data.labels import Columns

Row = tuple[str, dict[str, Any]]


def read(source: str, scheme: str, pattern: str, columns: Columns) -> Iterator[Row]:
    """Yields the rows of all files of a source; a column that a row lacks is None.

    Raises:
      UserError: there is no such file, one is not of its form, or lacks a column.
    """
    if scheme == "text" and (columns.label or columns.pair):
        raise UserError(f"{source}: plain text has no labels and no pairs; use jsonl:, csv:, tsv:, parquet: or tfds:")
    if scheme == "conll" and columns.pair:
        raise UserError(f"{source}: a file of words with tags has no pairs; leave data.pair empty")
    for path in _paths(source, pattern):
        yield from READERS[scheme](path, columns)


def require(where: str, found: Iterable[str], columns: Columns) -> None:
    """Raises UserError for a column that is not among those found, or there twice."""
    found = list(found)
    for field, name in columns.named:
        if found.count(name) > 1:
            raise UserError(f"{where}: {found.count(name)} columns have the name {name!r}, which data.{field} asks for")
        if name not in found:
            raise UserError(f"{where}: no column {name!r}; set data.{field} to one of {', '.join(map(repr, found))}")


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


def _read_text(path: Path, columns: Columns) -> Iterator[Row]:
    for document in re.split(r"\n\s*\n", _decode(path).replace("\r\n", "\n")):
        if document.strip():  # blank lines at the ends of a file are no document
            yield str(path), {columns.text: document}


def _read_jsonl(path: Path, columns: Columns) -> Iterator[Row]:
    first = True
    for number, line in enumerate(_decode(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from error
        except (ValueError, RecursionError) as error:  # Python refuses numbers of thousands of digits
            reason = "too deep" if isinstance(error, RecursionError) else "a number too long"
            raise UserError(f"{where}: not valid JSON ({reason})") from error
        if not isinstance(row, dict):
            raise UserError(
                f'{where}: must be a JSON object such as {{"{columns.text}": "..."}}, not {type(row).__name__}'
            )
        require(where, row, columns if first else columns._replace(label=""))  # a later row may lack its label
        first = False
        yield where, row


def _read_table(path: Path, columns: Columns, **style: Any) -> Iterator[Row]:
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
                require(where, names, columns)
                continue
            if len(fields) != len(names):
                raise UserError(f"{where}: {len(fields)} fields, but the first line names {len(names)}")
            yield where, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error


def _read_csv(path: Path, columns: Columns) -> Iterator[Row]:
    return _read_table(path, columns)


def _read_tsv(path: Path, columns: Columns) -> Iterator[Row]:
    return _read_table(path, columns, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_parquet(path: Path, columns: Columns) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            require(str(path), file.schema_arrow.names, columns)
            number = 0
            for batch in file.iter_batches(columns=[name for _, name in columns.named]):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})") from error


def _read_conll(path: Path, columns: Columns) -> Iterator[Row]:
    """One word and its tag a line, the first and the last of its columns; a blank line ends a text."""
    words: list[str] = []
    tags: list[str] = []
    start = 1
    for number, line in enumerate([*_decode(path).split("\n"), ""], 1):
        cells = line.split()
        if cells and cells[0] == "-DOCSTART-":
            cells = []
        if cells:
            if len(cells) < 2:
                raise UserError(f"{path}:{number}: one column; a line must have a word and its tag")
            start = start if words else number
            words.append(cells[0])
            tags.append(cells[-1])
        elif words:
            yield f"{path}:{start}", {columns.text: words, columns.label: tags}
            words, tags = [], []


READERS: dict[str, Callable[[Path, Columns], Iterator[Row]]] = {
    "text": _read_text, "jsonl": _read_jsonl, "csv": _read_csv, "tsv": _read_tsv, "parquet": _read_parquet,
    "conll": _read_conll,
}  # fmt: skip
