"""How good predictions are, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def classification_metrics(labels: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    """Returns `accuracy`, `f1` and `macro_f1`, in 0..1.

    `f1` is that of the second class where there are two (of "negative", "positive": the positive one), else `macro_f1`.
    """
    from sklearn import metrics

    per_class: Any = metrics.f1_score(labels, predicted, labels=list(classes), average=None, zero_division=0.0)  # pyright: ignore[reportArgumentType]
    macro = float(np.mean(per_class))
    f1 = float(per_class[1]) if len(classes) == 2 else macro
    return {"accuracy": float(metrics.accuracy_score(labels, predicted)), "f1": f1, "macro_f1": macro}


def regression_metrics(targets: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Returns `mean_squared_error`, `mean_absolute_error` and `r2`."""
    from sklearn import metrics

    return {
        "mean_squared_error": float(metrics.mean_squared_error(targets, predicted)),
        "mean_absolute_error": float(metrics.mean_absolute_error(targets, predicted)),
        "r2": float(metrics.r2_score(targets, predicted)),
    }
