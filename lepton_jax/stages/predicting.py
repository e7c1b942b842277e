"""The stage "predict": a trained model over a file of any size, or what comes in by standard input."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lepton_jax import infer, workdir
from lepton_jax.config import ApplyConfig, PredictConfig, to_dict
from lepton_jax.core.errors import UserError
from lepton_jax.disk import failed_write
from lepton_jax.infer import readings
from lepton_jax.stages.completion import Summary

_REPORTED = 1000  # predictions between two moves of the bar


class Row(NamedTuple):
    """A text; in place of one that cannot be read, the error that says why, so that the others go on."""

    text: str | UserError
    pair: str = ""


class Source(NamedTuple):
    rows: Iterator[Row]
    place: Callable[[], int]  # how far it has been read
    size: int | None  # where it ends, in the same unit; None: not known


def predict(config: PredictConfig, folder: Path) -> Summary:
    """Applies the model of a folder to the texts of a config, and returns how many they were and how fast it went.

    A file of predictions appears when it is complete; until then its lines are in `OUTPUT.part`, where the same command
    goes on if it was interrupted.

    Raises:
      UserError: there is no such input, it lacks a column, there is no model, or the output cannot be written.
    """
    settings = config.infer
    if settings.input not in ("", "-") and not Path(settings.input).expanduser().is_file():
        raise UserError(f"config.infer.input={settings.input!r}: no such file")
    start = time.perf_counter()
    predictor = infer.load(
        folder,
        settings.precision or None,
        settings,
        task=settings.task or None,
        pooling=settings.pooling,
        top=settings.top,
    )
    summary: Summary = {"predict.load_seconds": time.perf_counter() - start}
    for text, found in zip(settings.texts, predictor.stream(settings.texts), strict=True):
        print(f"{text}\t{json.dumps(found, ensure_ascii=False)}")
    if not settings.input:
        return summary
    return summary | _apply(predictor, settings, folder)


def _apply(predictor: infer.Predictor, settings: ApplyConfig, folder: Path) -> Summary:
    output = Path(settings.output).expanduser()
    counts = _start(output, _job(settings, folder))
    done = counts["texts"]
    start = time.perf_counter()
    try:
        with _open(settings) as source, _bar() as bar, open(_part(output), "a", encoding="utf-8") as file:
            task = bar.add_task("", total=source.size)
            for found in _stream(predictor, itertools.islice(source.rows, done, None), bool(settings.pair)):
                file.write(f"{json.dumps(found, ensure_ascii=False)}\n")
                _count(counts, found)
                if counts["texts"] % _REPORTED == 0:
                    bar.update(task, completed=source.place(), description=f"{counts['texts']:,} texts")
            file.flush()
            os.fsync(file.fileno())
        os.replace(_part(output), output)
        _part(output, ".json").unlink()
    except OSError as error:
        raise failed_write(output, error, "what is done stays in its .part") from error
    seconds = time.perf_counter() - start
    return {f"predict.{name}": count for name, count in counts.items()} | {
        "predict.seconds": seconds,
        "predict.texts_per_second": (counts["texts"] - done) / seconds,
    }


def _count(counts: dict[str, int], found: readings.Prediction) -> None:
    """Adds one prediction."""
    for name, more in (("texts", True), ("errors", "error" in found), ("warnings", "warning" in found)):
        counts[name] += more


def _stream(predictor: infer.Predictor, rows: Iterator[Row], paired: bool) -> Iterator[readings.Prediction]:
    texts, pairs = itertools.tee(rows)
    return predictor.stream((row.text for row in texts), (row.pair for row in pairs) if paired else None)


@contextlib.contextmanager
def _open(settings: ApplyConfig) -> Iterator[Source]:
    """Opens the input; a row that is not of its form is an error of that row, but a column that is missing ends all."""
    kind = Path(settings.input).suffix
    if settings.input == "-":
        yield Source(_lines(sys.stdin.buffer), lambda: 0, None)
        return
    path = Path(settings.input).expanduser()
    try:
        with open(path, "rb") as file:
            if kind == ".parquet":
                yield _parquet(path, settings)
                return
            rows = {".txt": _lines, ".jsonl": _objects}.get(kind, _table)
            yield Source(rows(file) if kind == ".txt" else rows(file, path, settings), file.tell, path.stat().st_size)
    except OSError as error:
        if error.filename != str(path):
            raise
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _lines(file: IO[bytes]) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        yield Row(_decoded(line, number))


def _decoded(line: bytes, number: int) -> str | UserError:
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return UserError(f"line {number}: byte 0x{line[error.start]:02x} at {error.start} is not UTF-8")


def _objects(file: IO[bytes], path: Path, settings: ApplyConfig) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        text = _decoded(line, number)
        if isinstance(text, UserError):
            yield Row(text)
            continue
        try:
            yield _row(json.loads(text), settings, f"line {number}")
        except (ValueError, RecursionError) as error:
            yield Row(UserError(f"line {number}: not valid JSON ({' '.join(str(error).split())})"))


def _row(cells: Any, settings: ApplyConfig, where: str) -> Row:
    """Returns the text and pair of one row's cells."""
    if not isinstance(cells, dict):
        return Row(UserError(f"{where}: must be an object with {settings.text!r}, not {type(cells).__name__}"))
    found = []
    for name in filter(None, (settings.text, settings.pair)):
        if name not in cells:
            return Row(UserError(f"{where}: no {name!r}; it has {', '.join(map(repr, cells)) or 'nothing'}"))
        if not isinstance(cells[name], str):
            return Row(UserError(f"{where}: {name!r} is {type(cells[name]).__name__}, not a string"))
        found.append(cells[name])
    return Row(*found)


def _table(file: IO[bytes], path: Path, settings: ApplyConfig) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long document
    style: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    # A byte that is no UTF-8 becomes half a character, which the predictor names.
    lines = (line.decode("utf-8-sig" if not number else "utf-8", "surrogateescape") for number, line in enumerate(file))
    reader = csv.reader(lines, **style)
    names = next(reader, [])
    _require(path, names, settings)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(UserError(f"line {reader.line_num}: not valid CSV ({error})"))
            continue
        if len(fields) == len(names):
            yield _row(dict(zip(names, fields, strict=True)), settings, f"line {reader.line_num}")
        elif fields:
            reason = f"line {reader.line_num}: {len(fields)} fields, but the first line names {len(names)}"
            yield Row(UserError(reason))


def _parquet(path: Path, settings: ApplyConfig) -> Source:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})") from error
    _require(path, table.schema_arrow.names, settings)
    read = 0

    def rows() -> Iterator[Row]:
        nonlocal read
        try:
            for batch in table.iter_batches(columns=[settings.text, settings.pair][: 1 + bool(settings.pair)]):
                for cells in batch.to_pylist():
                    read += 1
                    yield _row(cells, settings, f"row {read}")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: is damaged after row {read} ({reason}); restore it, then go on") from error

    return Source(rows(), lambda: read, table.metadata.num_rows)


def _require(path: Path, names: Sequence[str], settings: ApplyConfig) -> None:
    for field in ("text", "pair"):
        name = getattr(settings, field)
        if name and name not in names:
            raise UserError(f"{path}: no column {name!r}; set config.infer.{field} to one of "
                            f"{', '.join(map(repr, names)) or 'its columns; it has none'}")  # fmt: skip


def _part(output: Path, more: str = "") -> Path:
    return output.with_name(f"{output.name}.part{more}")


def _job(settings: ApplyConfig, folder: Path) -> dict[str, Any]:
    """Returns all that decides about the output: what is left of another job is not gone on with."""
    job: dict[str, Any] = {"infer": to_dict(settings), "model": str(folder.absolute())}
    files = [folder / name for name in ("model.json", "summary.json", "config.json", "manifest.json")]
    files += [Path(settings.input).expanduser()] if settings.input != "-" else []
    return job | {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.exists()}


def _start(output: Path, job: dict[str, Any]) -> dict[str, int]:
    """Prepares the unfinished output, and returns the counts of what it holds already of the same job."""
    part, record = _part(output), _part(output, ".json")
    counts = {"texts": 0, "errors": 0, "warnings": 0}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if part.exists() and record.exists() and job["infer"]["input"] != "-" and workdir.read_json(record) == job:
            with open(part, "rb+") as file:
                whole = 0
                for line in file:
                    if not line.endswith(b"\n"):  # the last one, which was cut off
                        break
                    whole += len(line)
                    _count(counts, json.loads(line))
                file.truncate(whole)
        else:
            part.unlink(missing_ok=True)
            workdir.write_json(record, job)
    except OSError as error:
        raise failed_write(output, error) from error
    return counts


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
