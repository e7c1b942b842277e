"""The predictor: texts in, predictions out, through one jitted function over parameters of any form."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lepton_jax.config import InferConfig
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.data.rows import Rows
from lepton_jax.data.spans import words_of
from lepton_jax.infer import buckets, exports, masks, readings, windows
from lepton_jax.infer import texts as reading
from lepton_jax.infer.profiles import Profile
from lepton_jax.infer.programs import Program
from lepton_jax.infer.readings import Prediction

_CPU_TOKENS = 512  # of a batch, see `InferConfig`
_CHUNK = 64  # batches whose texts are sorted together
_CHARACTERS = 1 << 24  # of the texts of a chunk, so that long ones need no more memory than many


@dataclasses.dataclass(frozen=True)
class Work:
    """Rows that are being computed, and for each batch the numbers of its rows and its (outputs, features) to come."""

    size: int
    batches: list[tuple[list[int], Future[tuple[np.ndarray, np.ndarray]]]]

    def get(self, which: int = 0) -> list[Any]:
        """Returns each row's outputs (0) or features (1), once they are there. An error or interruption gives up the
        batches that have not begun."""
        found: list[Any] = [None] * self.size
        try:
            for chosen, batch in self.batches:
                for row, own in zip(chosen, batch.result()[which], strict=False):
                    found[row] = own
        except BaseException:
            self.cancel()
            raise
        return found

    def cancel(self) -> None:
        """Gives up the batches that have not begun."""
        for _, batch in self.batches:
            batch.cancel()


class Predictor:
    """Predicts texts: `predictor(["a text", ...])`, or pairs of them: `predictor(texts, pairs)`.

    Texts are sorted by length and padded to the smallest bucket that holds them, so that there is one executable a
    bucket and results do not depend on the company a text arrives in. Nothing of it changes after it is made: threads
    may share it.
    """

    def __init__(self, program: Program, config: InferConfig | None = None, profile: Profile | None = None):
        """Places the parameters on the local devices; of several, each computes its share of the rows of a batch.

        Args:
          program: what it runs.
          config: buckets and devices.
          profile: of texts like those to come: lengths are chosen by it, if the config has none.

        Raises:
          UserError: there are not so many devices, or the program does not have these lengths.
        """
        config = config or InferConfig()
        self.program, self.signature, self.tokenizer = program, program.signature, program.tokenizer
        devices = jax.local_devices()
        if config.devices > len(devices):
            raise UserError(f"infer.devices={config.devices}: there are {len(devices)}; 0 takes all")
        devices = devices[: config.devices or None]
        if unknown := sorted(set(config.lengths) - set(program.lengths or config.lengths)):
            raise UserError(f"infer.lengths: {unknown[0]} is not a length of this program; it has "
                            f"{', '.join(map(str, program.lengths))}")  # fmt: skip
        self.profile = None if profile is None else dataclasses.replace(profile, predictor=self)
        self.max_length = self.signature.max_length
        special = len(self.tokenizer.with_specials(np.zeros(0, np.int32)))
        self.buckets = buckets.make(
            config.lengths or program.lengths, config.batch_sizes, self.max_length,
            None if profile is None else np.array(profile.length) + special, len(devices),
            config.batch_tokens or (_CPU_TOKENS if devices[0].platform == "cpu" else 0),
        )  # fmt: skip
        if len(devices) == 1:
            self.params = jax.device_put(program.params, devices[0])
            self.forward: Callable[..., Any] = jax.jit(program.forward)
        else:
            mesh = sharding.make_mesh("data=-1", devices)
            self.params = jax.device_put(program.params, sharding.replicated(mesh))
            self.forward = jax.jit(partial(_by_rows, program.forward, mesh))
        # One batch does not use all of a CPU: small operations take one core, and each waits for the one before.
        # Elsewhere the next batch is made ready meanwhile.
        cores = os.cpu_count() if len(devices) == 1 and devices[0].platform == "cpu" else None
        self._workers = ThreadPoolExecutor(2 * (cores or 1), "predictor")
        self._compiled: dict[tuple[int, int], Callable[..., Any]] = {}

    def compile(self) -> None:
        """Compiles the program of every bucket, or reads it from JAX's compilation cache."""

        def prepare(shape: tuple[int, int]) -> Callable[..., Any]:
            count, length = shape
            rows = Rows([np.zeros(length, np.int32)] * count)
            return self.forward.lower(self.params, *self.pad(rows, places=[0] * count)).compile()

        shapes = [(count, length) for length in self.buckets.lengths for count in self.buckets.rows(length)]
        self._compiled = dict(zip(shapes, self._workers.map(prepare, shapes), strict=True))

    def export(self, path: str | Path, platforms: Sequence[str] = exports.PLATFORMS) -> None:
        """Writes a folder that `load` runs on other machines without the code of the model, see `exports`.

        Args:
          path: must not exist, or be an empty folder.
          platforms: of "cpu", "cuda" and "tpu", where it will run.

        Raises:
          UserError: no such platform, this is an export itself, or the folder cannot be written.
        """
        exports.write(path, self.program, self.buckets.lengths, platforms, self.profile)

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Prediction]:
        """Returns one dict a text, or a pair of texts, in order.

        A classifier gives `{"label": str, "score": float, "scores": {label: float}}`, a multi-label one
        `{"labels": [str], "scores": {label: float}}` with those above 0.5, a regressor `{"score": float}`, a token
        classifier `{"entities": [{"start": int, "end": int, "label": str, "score": float, "text": str}]}` with
        character offsets, a filler of masks `{"masks": [{"start": int, "end": int, "tokens": [{"token": str,
        "score": float}]}]}` for each "[MASK]" of the text, an encoder `{"embedding": [float]}` of length 1. Scores of
        labels and tokens are probabilities.

        A token classifier reads a text of any length, in windows that overlap, see `windows.cut`, and a mask is seen in
        the part of its text that is around it. Otherwise, and where texts have pairs, what lies beyond the model's
        length is not looked at, and "warning" says so; it also names texts that are empty, or of which the vocabulary
        knows nothing. An element that is no text gets `{"error": str}`, and the others what they would get without it.

        Raises:
          UserError: `texts` or `pairs` is one string, or they are not as many.
        """
        reading.require_sequences(texts, pairs)
        return list(self.stream(texts, pairs))

    def stream(self, texts: Iterable[Any], pairs: Iterable[Any] | None = None) -> Generator[Prediction, None, None]:
        """Yields what a call returns, for texts without end in bounded memory: some thousands are held at a time.

        While a device computes those, the next ones are read. To `close` it before its end gives up what has not begun.

        Raises:
          UserError: there are not as many pairs as texts, or the model fills masks, and there are any.
        """
        if pairs is not None and self.signature.task == "masked_lm":
            raise UserError("predictor(texts, pairs): a filler of masks takes single texts")
        started: list[tuple[Work, Callable[[], list[Prediction]]]] = []
        try:
            for chunk in _chunks(texts, pairs, _CHUNK * self.buckets.counts[-1]):
                started.append(self._start(*chunk))
                if len(started) == 2:
                    yield from started.pop(0)[1]()
            if started:
                yield from started.pop()[1]()
        finally:
            for work, _ in started:
                work.cancel()

    def scores(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
        """Returns float64 [len(texts), C] of whole texts: probabilities of the labels, the number, or the embedding.

        Raises:
          UserError: as for `outputs`; or the model classifies tokens.
        """
        if self.signature.classifies_tokens:
            raise UserError("predictor.scores(texts): a token classifier has no scores of whole texts; call it instead")
        outputs = self.outputs(texts, pairs)
        table = np.stack(outputs) if outputs else np.zeros((0, self.signature.num_outputs))
        return readings.scores(self.signature, table)

    def outputs(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[np.ndarray]:
        """Returns what the head gives for each text, float32 [C], or [T, C] of its tokens, before `signature.scale`.

        The rows are those of `encode`, so that tokens beyond the model's length have none; T counts padding, too.

        Raises:
          UserError: as for a call; an element is no text; or the model fills masks.
        """
        if self.signature.task == "masked_lm":
            raise UserError("predictor.outputs(texts): a filler of masks has none of whole texts; call it instead")
        return self.run(self.encode(texts, pairs).rows)[0]

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> reading.Encoded:
        """Returns texts as rows of at most the model's length, see `texts.encode`.

        Raises:
          UserError: as for a call; or an element is no text.
        """
        reading.require_sequences(texts, pairs)
        for number, fault in reading.faults(texts, pairs).items():
            raise UserError(f"predictor(texts): element {number}: {fault}")
        return reading.encode(self.signature, self.tokenizer, texts, pairs)

    def run(self, rows: Rows, places: Sequence[int] = ()) -> tuple[list[np.ndarray], np.ndarray]:
        """Returns (outputs of each row, features [len(rows), D]), see `Program`; in the order of the rows.

        Args:
          rows: encoded texts.
          places: of a filler of masks, where in its row each mask is.
        """
        work = self._dispatch(rows, places)
        features = work.get(1)
        return work.get(), np.stack(features) if features else np.zeros((0, 0), np.float32)

    def pad(
        self, rows: Rows, chosen: Sequence[int] | None = None, places: Sequence[int] = ()
    ) -> tuple[np.ndarray, ...]:
        """Returns (token_ids, attention_mask[, token_type_ids][, places]), int32 [N, T] (places [N]): rows in their
        bucket of length and count. Rows that fill a batch up are all padding."""
        chosen = range(len(rows)) if chosen is None else chosen
        length = self.buckets.length(int(rows.lengths[list(chosen)].max()))
        count = self.buckets.count(len(chosen), length)
        typed = self.signature.typed
        columns = [rows.ids, rows.types] if typed else [rows.ids]
        tables = [np.full((count, length), filler, np.int32) for filler in (self.tokenizer.pad_id, 0)[: len(columns)]]
        mask = np.zeros((count, length), np.int32)
        for index, row in enumerate(chosen):
            for table, column in zip(tables, columns, strict=True):
                if column is not None:
                    table[index, : len(column[row])] = column[row]
            mask[index, : len(rows.ids[row])] = 1
        extra = []
        if self.signature.task == "masked_lm":
            extra = [np.zeros(count, np.int32)]
            extra[0][: len(chosen)] = [places[row] for row in chosen]
        return tables[0], mask, *tables[1:], *extra

    def _start(self, texts: Sequence[Any], pairs: Sequence[Any] | None) -> tuple[Work, Callable[[], list[Prediction]]]:
        """Sends texts to the devices, and returns what is being computed, and what waits for the predictions."""
        faults = reading.faults(texts, pairs)
        good = [number for number in range(len(texts)) if number not in faults]
        work, read = self._send([texts[number] for number in good], None if pairs is None else [pairs[n] for n in good])

        def finish() -> list[Prediction]:
            found = dict(zip(good, read(work.get()), strict=True))
            return [{"error": faults[number]} if number in faults else found[number] for number in range(len(texts))]

        return work, finish

    def _send(self, texts: list[str], pairs: list[str] | None) -> tuple[Work, Callable[[list[Any]], list[Prediction]]]:
        """Returns what is being computed for texts, and what reads predictions from its outputs."""
        if self.signature.task == "masked_lm":
            return self._fill(texts)
        if self.signature.classifies_tokens and pairs is None:
            return self._read_in_windows(texts)
        encoded = reading.encode(self.signature, self.tokenizer, texts, pairs)

        def read(outputs: list[Any]) -> list[Prediction]:
            found = readings.read(self.signature, outputs, texts, encoded.words)
            for prediction, ids, sizes in zip(found, encoded.rows.ids, encoded.sizes, strict=True):
                note(prediction, reading.warning(self.tokenizer, ids, *sizes))
            return found

        return self._dispatch(encoded.rows), read

    def _read_in_windows(self, texts: list[str]) -> tuple[Work, Callable[[list[Any]], list[Prediction]]]:
        encoded = self.tokenizer.rows(texts)
        words = [words_of(row, text) for row, text in zip(encoded, texts, strict=True)]
        cuts = [windows.cut(row, own, self.max_length) for row, own in zip(encoded, words, strict=True)]
        rows = Rows([window.ids for own in cuts for window in own])

        def read(outputs: list[Any]) -> list[Prediction]:
            rest = iter(outputs)
            whole = [
                windows.join(own, [next(rest) for _ in own], len(row), self.signature.num_outputs)
                for row, own in zip(encoded, cuts, strict=True)
            ]
            found = readings.read(self.signature, whole, texts, words)
            for prediction, row in zip(found, encoded, strict=True):
                size = int((row.sequence >= 0).sum())
                note(prediction, reading.warning(self.tokenizer, row.ids, size, size))
            return found

        return self._dispatch(rows), read

    def _fill(self, texts: list[str]) -> tuple[Work, Callable[[list[Any]], list[Prediction]]]:
        masked = masks.encode(self.tokenizer, texts, self.max_length)

        def read(outputs: list[Any]) -> list[Prediction]:
            found = masks.read(self.tokenizer, masked, outputs)
            for prediction, text in zip(found, texts, strict=True):
                count = text.count(masks.MARK)
                if not count:
                    note(prediction, f"the text has no {masks.MARK}")
                if count > masks.MOST:
                    note(prediction, f"filled were the first {masks.MOST} of the text's {count} masks")
            return found

        return self._dispatch(Rows(masked.ids), masked.places), read

    def compute(self, *batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (outputs, features) of a batch that `pad` made, see `Program`, once they are there."""
        call = self._compiled.get(batch[0].shape, self.forward)
        outputs, features = call(self.params, *batch)
        return np.asarray(outputs), np.asarray(features)

    def _dispatch(self, rows: Rows, places: Sequence[int] = ()) -> Work:
        """Starts to compute rows."""

        def compute(chosen: list[int]) -> tuple[np.ndarray, np.ndarray]:
            return self.compute(*self.pad(rows, chosen, places))

        batches = self.buckets.batches(rows.lengths)
        if len(batches) == 1:  # here and now: handing one text to another thread takes a tenth of its whole time
            done: Future[tuple[np.ndarray, np.ndarray]] = Future()
            done.set_result(compute(batches[0]))
            return Work(len(rows), [(batches[0], done)])
        return Work(len(rows), [(chosen, self._workers.submit(compute, chosen)) for chosen in batches])


def _by_rows(forward: Callable[..., Any], mesh: Mesh, params: Any, *batch: jax.Array) -> Any:
    """Applies a program to each device's own rows of a batch: no device waits for another."""
    rows: Any = PartitionSpec(sharding.ROW_AXES)
    specs = (PartitionSpec(), *[rows] * len(batch))
    return jax.shard_map(forward, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(params, *batch)


def note(prediction: Prediction, warning: str | None) -> None:
    """Puts a warning into a prediction, if there is one."""
    if warning is not None:
        prediction["warning"] = warning


def _chunks(
    texts: Iterable[Any], pairs: Iterable[Any] | None, most: int
) -> Iterator[tuple[list[Any], list[Any] | None]]:
    """Yields texts, and pairs if there are any, some at a time."""
    rest, seconds = iter(texts), None if pairs is None else iter(pairs)
    while True:
        chunk, characters = [], 0
        for text in islice(rest, most):
            chunk.append(text)
            characters += len(text) if isinstance(text, str) else 0
            if characters > _CHARACTERS:
                break
        own = None if seconds is None else list(islice(seconds, len(chunk)))
        if own is not None and len(own) < len(chunk):
            raise UserError("predictor.stream(texts, pairs): there are fewer pairs than texts; one each")
        if not chunk:
            if seconds is not None and next(seconds, None) is not None:
                raise UserError("predictor.stream(texts, pairs): there are more pairs than texts; one each")
            return
        yield chunk, own


def speedup(
    baseline: Predictor,
    other: Predictor,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    repeats: int = 15,
) -> float:
    """Returns median seconds of `baseline` / median seconds of `other` for as many texts as a batch has at most, of
    tokens to logits, timed by turns."""
    count = baseline.buckets.counts[-1]
    rows = baseline.encode(texts[:count], None if pairs is None else pairs[:count]).rows
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(repeats + 1):
        for which, predictor in enumerate((baseline, other)):
            start = time.perf_counter()
            predictor.run(rows)
            if turn:  # the first turn compiles
                seconds[which].append(time.perf_counter() - start)
    return float(np.median(seconds[0]) / np.median(seconds[1]))
