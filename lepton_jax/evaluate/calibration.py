"""Whether probabilities mean what they say (Guo et al. 2017, arXiv:1706.04599)."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lepton_jax.evaluate.metrics import classification_losses, multi_label_losses

BINS = 15
_RANGE = (0.05, 20.0)  # of temperatures that are looked at


def confidence(
    probabilities: Float[np.ndarray, "n classes"], labels: np.ndarray
) -> tuple[Float[np.ndarray, "m"], Bool[np.ndarray, "m"]]:
    """Returns how sure each prediction is, and whether it is right.

    Of single classes (labels int [n]) the probability of the likeliest one; of sets (labels [n, classes] of 0 and 1)
    that of each class, and whether it applies. (The likelier of "applies" and "does not" would hide a model that says
    too much: what is too high above a half and what is too high below it would weigh out.)
    """
    if labels.ndim == 1:
        return probabilities.max(1), probabilities.argmax(1) == labels
    return probabilities.ravel(), (labels > 0.5).ravel()


def reliability(sure: Float[np.ndarray, "m"], right: Bool[np.ndarray, "m"], bins: int = BINS) -> list[dict[str, Any]]:
    """Returns {"confidence", "accuracy", "count"} of each of `bins` equal intervals of [0, 1] that is not empty."""
    numbers = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    return [
        {
            "confidence": float(sure[numbers == number].mean()),
            "accuracy": float(right[numbers == number].mean()),
            "count": int((numbers == number).sum()),
        }
        for number in range(bins)
        if (numbers == number).any()
    ]


def expected_error(sure: Float[np.ndarray, "m"], right: Bool[np.ndarray, "m"], bins: int = BINS) -> float:
    """Returns the expected calibration error: the mean distance of confidence and accuracy (equation 3)."""
    rows = reliability(sure, right, bins)
    return sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / max(len(sure), 1)


def fit_temperature(logits: Float[np.ndarray, "n classes"], labels: np.ndarray) -> float:
    """Returns the temperature T by which logits / T have the least cross-entropy (section 4.2); 1 without an example.

    Labels are int [n], or 0 and 1 of shape [n, classes].
    """
    from scipy import optimize

    if not len(logits):
        return 1.0
    losses = classification_losses if labels.ndim == 1 else multi_label_losses

    def mean_loss(log_temperature: float) -> float:
        return float(losses(logits.astype(np.float64) / np.exp(log_temperature), labels).mean())

    found: Any = optimize.minimize_scalar(mean_loss, bounds=np.log(_RANGE), method="bounded")
    return float(np.exp(found.x))
