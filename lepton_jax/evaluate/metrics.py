"""How good predictions are, by scikit-learn, SciPy and seqeval. A metric that is not defined for the data is NaN.

The names are those of `config.METRICS`; each example counts once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lepton_jax.config import METRICS

Metrics = dict[str, float]


def classification(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, "n"]) -> Metrics:
    """Returns the metrics of single classes.

    `loss` is the mean cross-entropy in nats; `f1` that of class 1 where there are two classes, else `macro_f1`, which
    is the mean over all classes; `mcc` Matthews' correlation; `auroc` of several classes the mean of each against the
    rest.
    """
    from sklearn import metrics

    classes = logits.shape[1]
    probabilities, predicted = softmax(logits), logits.argmax(1)
    names = list(range(classes))
    per_class: Any = metrics.f1_score(labels, predicted, labels=names, average=None, zero_division=0.0)  # pyright: ignore[reportArgumentType]
    macro = float(np.mean(per_class))

    def auroc() -> Any:
        if classes == 2:  # of logits, for probabilities near 1 are all the same number
            return metrics.roc_auc_score(labels, logits[:, 1].astype(np.float64) - logits[:, 0])
        return metrics.roc_auc_score(labels, probabilities, multi_class="ovr", labels=names)

    return {
        "loss": float(classification_losses(logits, labels).mean()),
        "accuracy": float((predicted == labels).mean()),
        "f1": float(per_class[1]) if classes == 2 else macro,
        "macro_f1": macro,
        "micro_f1": float(metrics.f1_score(labels, predicted, average="micro")),
        "mcc": _defined(lambda: metrics.matthews_corrcoef(labels, predicted)),
        "auroc": _defined(auroc),
    }


def multi_label(logits: Float[np.ndarray, "n classes"], targets: Float[np.ndarray, "n classes"]) -> Metrics:
    """Returns the metrics of sets of classes, each predicted where its logit is above 0.

    `loss` is the sigmoid cross-entropy in nats, summed over classes; `exact_match` the share of examples whose whole
    set is right; `auroc` the mean over the classes that some examples have and some have not.
    """
    from sklearn import metrics

    predicted, wanted = (logits > 0).astype(int), (targets > 0.5).astype(int)
    both = [column for column in range(wanted.shape[1]) if 0 < wanted[:, column].sum() < len(wanted)]

    def f1(average: Any) -> float:
        return float(metrics.f1_score(wanted, predicted, average=average, zero_division=0.0))  # pyright: ignore[reportArgumentType]

    return {
        "loss": float(multi_label_losses(logits, targets).mean()),
        "exact_match": float((predicted == wanted).all(1).mean()),
        "micro_f1": f1("micro"),
        "macro_f1": f1("macro"),
        "auroc": _defined(lambda: np.mean([metrics.roc_auc_score(wanted[:, c], logits[:, c]) for c in both])),
    }


def regression(predictions: Float[np.ndarray, "n"], targets: Float[np.ndarray, "n"]) -> Metrics:
    """Returns the metrics of numbers.

    `r2` needs two targets that differ, the correlations `pearson` and `spearman` two numbers that differ on each side;
    where a prediction is not finite, nothing is defined.
    """
    from scipy import stats
    from sklearn import metrics

    predictions, targets = predictions.astype(np.float64), targets.astype(np.float64)
    if not np.isfinite(predictions).all():
        return dict.fromkeys(METRICS["regression"], math.nan)
    error = float(metrics.mean_squared_error(targets, predictions))
    return {
        "loss": error,
        "mean_squared_error": error,
        "mean_absolute_error": float(metrics.mean_absolute_error(targets, predictions)),
        "r2": _defined(lambda: metrics.r2_score(targets, predictions, force_finite=False)),
        "pearson": _defined(lambda: stats.pearsonr(predictions, targets)[0]),
        "spearman": _defined(lambda: stats.spearmanr(predictions, targets)[0]),
    }


Spans = Sequence[tuple[int, int, str]]


def spans(wanted: Sequence[Spans], predicted: Sequence[Spans]) -> Metrics:
    """Returns `precision`, `recall` and `f1` of exact spans, bounds and type, over all texts.

    seqeval compares tags, here of characters: so spans are what they are, however a tokenizer cuts them.
    """
    from seqeval.metrics.v1 import precision_recall_fscore_support  # what seqeval calls its strict mode
    from seqeval.scheme import IOB2

    # Types are numbers here: seqeval takes "-" off the ends of a type, and so two for one.
    types = sorted({name for text in (*wanted, *predicted) for _, _, name in text})
    numbers = {name: str(number) for number, name in enumerate(types)}
    pairs = [_character_tags(numbers, *each) for each in zip(wanted, predicted, strict=True)]
    tags = [[pair[side] for pair in pairs] for side in (0, 1)]
    found: Any = precision_recall_fscore_support(*tags, average="micro", scheme=IOB2, zero_division=0)  # pyright: ignore[reportArgumentType]
    return dict(zip(("precision", "recall", "f1"), map(float, found[:3]), strict=True))


def _character_tags(types: dict[str, str], *sides: Spans) -> list[list[str]]:
    """Returns each side's spans of one text as IOB2 tags of its characters, up to the last that any side has."""
    length = max((end for side in sides for _, end, _ in side), default=0) + 1
    tags = [["O"] * length for _ in sides]
    for side, own in zip(sides, tags, strict=True):
        for start, end, name in side:
            own[start:end] = [f"B-{types[name]}", *[f"I-{types[name]}"] * (end - start - 1)]
    return tags


def softmax(logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """Returns probabilities in float64."""
    return np.exp(_log_softmax(logits))


def classification_losses(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """Returns the cross-entropy of each example, in nats, float64."""
    return -np.take_along_axis(_log_softmax(logits), labels[:, None].astype(np.int64), axis=1)[:, 0]


def multi_label_losses(
    logits: Float[np.ndarray, "n classes"], targets: Float[np.ndarray, "n classes"]
) -> Float[np.ndarray, "n"]:
    """Returns the sigmoid cross-entropy of each example, summed over classes, in nats, float64."""
    logits = logits.astype(np.float64)
    return (np.logaddexp(0, logits) - targets * logits).sum(1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _defined(metric: Callable[[], Any]) -> float:
    """Returns a metric, or NaN where the data do not define it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = float(metric())
        except ValueError:
            return math.nan
    return value if math.isfinite(value) else math.nan
