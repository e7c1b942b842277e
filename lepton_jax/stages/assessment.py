"""How examples become rows of a model, and what its outputs for them are worth: one place for every kind of label."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from lepton_jax import hub
from lepton_jax.data import spans
from lepton_jax.data.rows import Rows
from lepton_jax.data.sources import Examples
from lepton_jax.data.tokenizers import Tokenizer
from lepton_jax.evaluate import baseline, calibration, metrics
from lepton_jax.evaluate.lines import KINDS, Kind
from lepton_jax.evaluate.slices import by_slice
from lepton_jax.infer import readings
from lepton_jax.infer.signature import Signature

Outputs = Sequence[np.ndarray]  # of each example, see `train.evaluate.make_outputs`
Line = dict[str, Any]  # of predictions.jsonl


@dataclasses.dataclass(frozen=True)
class Part:
    """Examples of one split, and what the model gets of them."""

    examples: Examples
    rows: Rows
    words: tuple[list[spans.Word], ...] = ()  # of spans: the words of each text that its row shows
    report: dict[str, int] = dataclasses.field(default_factory=dict)  # what does not fit into the rows

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, numbers: list[int]) -> Part:
        """Returns the examples of the given numbers, with their labels but without rows to run."""
        labels = self.rows.labels
        chosen = labels[numbers] if isinstance(labels, np.ndarray) else [(labels or ())[number] for number in numbers]
        rows = Rows([np.zeros(0, np.int32)] * len(numbers), chosen)
        return Part(self.examples.take(numbers), rows, tuple(self.words[number] for number in numbers if self.words))


def encode(examples: Examples, tokenizer: Tokenizer, card: hub.Card) -> Part:
    """Returns examples as rows of at most `card.max_length` tokens, with their labels as numbers.

    Texts that are longer lose their end, of pairs the longer one first; how many, the report of the part says.
    """
    kind, texts, pairs = KINDS[card.task.name], examples.texts, examples.pairs
    labels: Any = examples.labels or []
    special = len(tokenizer.with_specials(np.zeros(0, np.int32)))
    whole = tokenizer.encode(texts)
    types = None
    if kind == "spans":
        encoded = tokenizer.rows(texts, max_length=card.max_length)
        words = tuple(spans.words_of(*each) for each in zip(encoded, texts, strict=True))
        targets: Any = [
            spans.align(own, len(row), label, card.labels)
            for own, row, label in zip(words, encoded, labels, strict=True)
        ]
        lost = sum(map(spans.unreachable, words, labels))
        report = {"truncated": sum(len(ids) + special > card.max_length for ids in whole), "unreachable_spans": lost}
        return Part(examples, Rows([row.ids for row in encoded], targets), words, report)
    if kind == "classes":
        numbers = {label: number for number, label in enumerate(card.labels)}
        targets = np.asarray([numbers[label] for label in labels], np.int32)
    elif kind == "sets":
        targets = np.asarray([[name in chosen for name in card.labels] for chosen in labels], np.float32)
        targets = targets.reshape(len(labels), len(card.labels))
    else:
        targets = np.asarray(labels, np.float32)
    if pairs is None:
        room = card.max_length - special
        ids = [tokenizer.with_specials(each[:room]) for each in whole]
        cut = sum(len(each) > room for each in whole)
    else:
        encoded = tokenizer.rows(texts, pairs, card.max_length)
        ids, types = [row.ids for row in encoded], [row.type_ids for row in encoded]
        types = types if card.model.type_vocab_size > 1 else None
        kept = (int((row.sequence >= 0).sum()) for row in encoded)
        seconds = tokenizer.encode(pairs)
        cut = sum(len(a) + len(b) > n for a, b, n in zip(whole, seconds, kept, strict=True))
    return Part(examples, Rows(ids, targets, types), report={"truncated": cut})


@dataclasses.dataclass(frozen=True)
class Judge:
    """What outputs mean for a model with a card: predictions, metrics, slices."""

    card: hub.Card

    @property
    def kind(self) -> Kind:
        return KINDS[self.card.task.name]

    def logits(self, outputs: Outputs) -> Any:
        """Returns outputs in the units of scores: float64 [n, C], for tokens a list of [T, C]."""
        scaled = [output.astype(np.float64) * self.card.scale + self.card.offset for output in outputs]
        return scaled if self.kind == "spans" else np.stack(scaled) if scaled else np.zeros((0, self.card.num_outputs))

    def measure(self, part: Part, outputs: Outputs) -> dict[str, float]:
        """Returns the metrics of `config.METRICS`."""
        logits, labels = self.logits(outputs), part.rows.labels
        if self.kind == "spans":
            losses, counts = self._token_losses(part, logits)
            found = [guess for guess, _ in self._read(part, outputs)]
            return {
                "loss": float(sum(losses) / max(sum(counts), 1)),
                **metrics.spans(part.examples.labels or [], found),
            }
        assert isinstance(labels, np.ndarray)
        if self.kind == "classes":
            return metrics.classification(logits, labels)
        if self.kind == "sets":
            return metrics.multi_label(logits, labels)
        return metrics.regression(logits[:, 0], labels)

    def predictions(self, part: Part, outputs: Outputs) -> list[Line]:
        """Returns a line an example: text, pair, source, label, prediction, score, loss."""
        logits, labels = self.logits(outputs), cast(Any, part.rows.labels)
        read = self._read(part, outputs)
        if self.kind == "spans":
            losses = [loss / max(count, 1) for loss, count in zip(*self._token_losses(part, logits), strict=True)]
        elif self.kind == "classes":
            losses = metrics.classification_losses(logits, labels).tolist()
        elif self.kind == "sets":
            losses = metrics.multi_label_losses(logits, labels).tolist()
        else:
            losses = ((logits[:, 0] - labels) ** 2).tolist()
        examples = part.examples
        lines = []
        for number, (text, label) in enumerate(zip(examples.texts, examples.labels or (), strict=True)):
            line = {"text": text}
            if examples.pairs is not None:
                line["pair"] = examples.pairs[number]
            if examples.sources is not None and len(examples.source_names) > 1:
                line["source"] = examples.source_names[examples.sources[number]]
            guess, score = read[number]
            lines.append(line | {"label": label, "prediction": guess, "score": score, "loss": losses[number]})
        return lines

    def calibration(self, part: Part, outputs: Outputs) -> dict[str, Any] | None:
        """Returns the expected calibration error before and after the temperature, and the bins after it."""
        labels = part.rows.labels
        if self.kind not in ("classes", "sets") or not isinstance(labels, np.ndarray):
            return None
        errors, bins = [], []
        own = Signature.of(self.card)
        for signature in (dataclasses.replace(own, scale=1.0), own):
            sure, right = calibration.confidence(readings.scores(signature, np.stack(outputs)), labels)
            errors.append(calibration.expected_error(sure, right))
            bins = calibration.reliability(sure, right)
        return {"temperature": 1 / self.card.scale, "error_unscaled": errors[0], "error": errors[1], "bins": bins}

    def slices(self, part: Part, outputs: Outputs) -> list[dict[str, Any]]:
        """Returns results by length, label and source, see `evaluate.slices`."""
        examples = part.examples
        names = examples.source_names
        sources = [names[number] for number in examples.sources or ()] if len(names) > 1 else None
        shown = {  # no means over classes: a slice may lack some of them
            "classes": ("accuracy", "loss"), "sets": ("exact_match", "micro_f1"),
            "numbers": ("mean_squared_error", "spearman"), "spans": ("precision", "recall", "f1"),
        }[self.kind]  # fmt: skip

        def measure(numbers: list[int]) -> dict[str, float]:
            found = self.measure(part.take(numbers), [outputs[number] for number in numbers])
            return {name: found[name] for name in shown if not math.isnan(found[name])}

        return by_slice(
            measure,
            lengths=list(map(len, examples.texts)),
            labels=examples.labels if self.kind == "classes" else None,
            sources=sources,
        )

    def _read(self, part: Part, outputs: Outputs) -> list[tuple[Any, float]]:
        """Returns (prediction, score) of each example, see `readings.in_short`."""
        found = readings.read(Signature.of(self.card), outputs, part.examples.texts, part.words)
        return [readings.in_short(out) for out in found]

    def _token_losses(self, part: Part, logits: list[np.ndarray]) -> tuple[list[float], list[int]]:
        """Returns the summed losses of each text's words, and how many they are."""
        sums, counts = [], []
        for own, classes in zip(logits, part.rows.labels or (), strict=True):
            scored = np.flatnonzero(classes >= 0)
            sums.append(float(metrics.classification_losses(own[scored], classes[scored]).sum()))
            counts.append(len(scored))
        return sums, counts


def temperature(part: Part, outputs: Outputs) -> float:
    """Returns the temperature of classes or sets that suits the validation examples best."""
    labels = part.rows.labels
    assert isinstance(labels, np.ndarray)
    return calibration.fit_temperature(np.stack(outputs), labels)


def measure_baseline(card: hub.Card, parts: Mapping[str, Part], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns part -> metric -> value of the baseline that is fitted to the part "train", see `evaluate.baseline`."""
    judge = Judge(dataclasses.replace(card, scale=1.0, offset=0.0))
    train, validation = parts["train"], parts.get("validation", parts["train"].take([]))

    def texts_of(part: Part) -> baseline.Texts:
        return part.examples.texts, part.examples.pairs

    def words_of(part: Part) -> list[list[str]]:
        pairs = zip(part.examples.texts, part.words, strict=True)
        return [[text[word.start : word.end] for word in words] for text, words in pairs]

    if judge.kind == "spans":
        classes = [labels[labels >= 0] for labels in train.rows.labels or ()]
        tag = baseline.fit_words(words_of(train), classes, card.num_outputs)

        def outputs(part: Part) -> Outputs:
            found = []
            for ids, words, scores in zip(part.rows.ids, part.words, tag(words_of(part)), strict=True):
                row = np.zeros((len(ids), card.num_outputs))
                row[[word.first for word in words]] = scores
                found.append(row)
            return found
    else:
        examples, held_out = [(texts_of(part), cast(np.ndarray, part.rows.labels)) for part in (train, validation)]
        predict = baseline.fit_texts(judge.kind, examples, held_out, card.num_outputs)

        def outputs(part: Part) -> Outputs:
            return list(predict(texts_of(part)))

    measured = {name: judge.measure(parts[name], outputs(parts[name])) for name in names}
    return {
        name: {key: value for key, value in each.items() if math.isfinite(value)} for name, each in measured.items()
    }
