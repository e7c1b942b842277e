"""Do the figures of runs mean the same? A metric compares settings only where all else that makes it is alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lepton_jax.core.errors import UserError
from lepton_jax.evaluate.display import last_name
from lepton_jax.results.differences import field
from lepton_jax.results.runs import Run
from lepton_jax.workdir import read_jsonl

# What a loss or an accuracy of a language model is about besides its texts: what a token is, which ones are predicted,
# and how much of a text is seen.
_VOCABULARY = ("data.tokenizer", "data.tokenizer_size", "data.byte_fallback", "data.lowercase")
_PREDICTED = ("task.mask_rate", "task.mask_unit", "task.span_length", "task.mask_token_share",
              "task.random_token_share", "data.max_length")  # fmt: skip
_TRAINED = ("unigram", "bpe", "char")  # tokenizers that are made from the training texts
_READ = ("data.text", "data.pair", "data.label", "data.split_seed")
_SPEED = ("per_second", "seconds", "speedup", "utilisation")
_SIZE = ("parameters", "size_ratio", "examples", "tokens")


def require_comparable(runs: Sequence[Run], metric: str) -> None:
    """Raises where a metric of the complete runs among some does not mean the same.

    It does if task and held-out data are the same (as the config says, and as predictions.jsonl shows); for a language
    model also vocabulary, what is predicted, and the length of rows. Speeds ask for the same devices instead. What does
    not make the metric may differ: the mask rate of a pretraining, where the accuracy is of a fine-tuning after it.

    Raises:
      UserError: two runs differ; the message names the field, and the value of each.
    """
    runs = [run for run in runs if run.state == "complete"]
    if not runs:
        return
    name, first = last_name(metric), runs[0]
    if name.endswith(_SIZE):
        return
    if name.endswith(_SPEED):
        for run in runs[1:]:
            if run.devices != first.devices:
                raise _refusal(metric, "the devices", (first, first.devices), (run, run.devices))
        return
    language = metric.startswith("pretrain.")
    fields = dict.fromkeys(["task.name", *(path for run in runs for path in _held_out(run, metric))])
    if language:
        fields |= dict.fromkeys(path for run in runs for path in _language(run))
    for path in fields:
        for run in runs[1:]:
            a, b = (_of_training(each, path, language) for each in (first, run))
            if a[1] != b[1]:
                raise _refusal(metric, f"config.{b[0]}", (first, a[1]), (run, b[1]))
    if not language:
        _require_same_examples(runs, metric)


def _held_out(run: Run, metric: str) -> list[str]:
    """Returns the fields that say which texts a metric was measured on."""
    part = "validation" if metric.startswith("pretrain.") else run.summary.get("finetune.evaluated_on")
    fields: list[str] = [*_READ]
    for each in ("test", "validation") if part not in ("test", "validation") else (part,):
        fields.append(f"data.{each}")
        # Where it is not named, it comes with the training data, or is a share of them, after that of the other part.
        if not _of_training(run, f"data.{each}", metric.startswith("pretrain."))[1]:
            fields += ["data.train", "data.test_share", "data.validation_share"]
    return fields


def _language(run: Run) -> list[str]:
    _, task = _of_training(run, "task.name", True)
    fields = [path for path in _PREDICTED if task == "masked_lm" or not path.startswith("task.")]
    trained = _of_training(run, "data.tokenizer", True)[1] in _TRAINED
    return [*_VOCABULARY, *fields, *(["data.train"] if trained else [])]


def _of_training(run: Run, path: str, language: bool) -> tuple[str, Any]:
    """Returns (path, value) of a field of the training that a metric is of; a quickstart has two."""
    if run.config.get("stage") == "quickstart":
        path = f"{'pretrain' if language else 'finetune'}.{path}"
    return path, field(run.config, path)


def _require_same_examples(runs: Sequence[Run], metric: str) -> None:
    known: tuple[Run, Counter[Any]] | None = None
    for run in runs:
        path = run.predictions(metric)
        if not path.is_file():
            continue
        found = Counter((line.get("text"), line.get("pair"), repr(line.get("label"))) for line in read_jsonl(path))
        if known is None:
            known = run, found
        elif found != known[1]:
            counts = (known[0], f"{known[1].total():,} examples"), (run, f"{found.total():,} examples")
            other = next(iter((found - known[1]) or (known[1] - found)))[0]
            raise _refusal(metric, f"predictions.jsonl, which {str(other)[:40]!r} is not in both of,", *counts)


def _refusal(metric: str, what: str, a: tuple[Run, Any], b: tuple[Run, Any]) -> UserError:
    (one, left), (other, right) = a, b
    left, right = (value if isinstance(value, str) and " " in value else repr(value) for value in (left, right))
    return UserError(f"{metric} does not mean the same in all runs: {what} is {left} in {one.folder}, {right} in "
                     f"{other.folder}; compare runs that agree in it, or another metric")  # fmt: skip
