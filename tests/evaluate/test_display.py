"""How metrics are read."""

import math

import pytest

from lepton_jax.evaluate.display import headings, is_share, lower_is_better, shown, spread

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("pretrain.validation_loss", True), ("validation/loss", True), ("loss", True), ("finetune.accuracy", False),
        ("pretrain.perplexity", True), ("finetune.mean_squared_error", True), ("finetune.spearman", False),
        ("wall_seconds", True), ("pretrain.tokens_per_second", False), ("pretrain.parameters", True),
        ("int8.speedup", False), ("finetune.calibration.error", True), ("int8.size_ratio", False),
    ],
)  # fmt: skip
def test_which_direction_is_better(metric, lower):
    assert lower_is_better(metric) == lower


def test_shares_are_in_percent_wherever_they_are():
    assert is_share("finetune.macro_f1") and is_share("data.tokens.share_of_positions") and not is_share("finetune.mcc")
    assert shown("finetune.accuracy", 0.8426) == "84.3%" and shown("finetune.mcc", 0.8426) == "0.8426"
    assert shown("pretrain.parameters", 5462784.0) == shown("pretrain.parameters", 5462784) == "5,462,784"


@pytest.mark.parametrize(
    ("metric", "mean", "std", "text"),
    [
        ("finetune.accuracy", 0.84231, 0.00596, ("84.2", "0.6")),
        ("finetune.loss", 0.35446, 0.00617, ("0.3545", "0.0062")),
        ("pretrain.validation_loss", 3.6351, 0.012, ("3.635", "0.012")),
        ("finetune.accuracy", 0.5, 0.0002, ("50.00", "0.02")),
        ("pretrain.tokens_per_second", 5948.4, 74.2, ("5,948", "74")), ("x", math.nan, 1.0, ("-", "")),
        ("finetune.accuracy", 0.4880803, 7e-17, ("48.8", "0.0")),
        ("x", 2.0, math.nan, ("2", "")), ("x", 3e-6, 1e-7, ("3e-06", "1e-07")),
    ],
)  # fmt: skip
def test_a_mean_and_its_deviation_have_the_same_digits(metric, mean, std, text):
    assert spread(metric, mean, std) == text


def test_headings_are_short_where_they_may_be():
    assert headings(["finetune.accuracy", "wall_seconds"]) == {
        "finetune.accuracy": "accuracy, %", "wall_seconds": "wall seconds"
    }  # fmt: skip
    assert list(headings(["finetune.f1", "int8.f1"]).values()) == ["finetune f1, %", "int8 f1, %"]
