"""Comparisons of two runs: McNemar by hand, intervals that cover a known difference, runs that do not compare."""

import math

import numpy as np
import pytest

from lepton_jax.core.errors import UserError
from lepton_jax.evaluate.compare import compare
from lepton_jax.evaluate.lines import figures
from lepton_jax.evaluate.metrics import classification, multi_label, regression, spans

pytestmark = pytest.mark.once

DRAW = np.random.default_rng(0)


def lines(labels, predictions):
    return [
        {"text": f"text {n}", "label": a, "prediction": b}
        for n, (a, b) in enumerate(zip(labels, predictions, strict=True))
    ]


def test_figures_are_the_metrics():
    """Over all examples; and over some of them, each as often as it is drawn."""
    logits, labels = DRAW.normal(size=(50, 3)), DRAW.integers(0, 3, 50)
    names = np.array(list("abc"))
    found, wanted = figures("classes", lines(names[labels], names[logits.argmax(1)])), classification(logits, labels)
    for name in ("accuracy", "macro_f1"):
        assert found[name](np.arange(50)) == pytest.approx(wanted[name])
    drawn = DRAW.integers(0, 50, 50)
    some = classification(logits[drawn], labels[drawn])
    assert found["macro_f1"](drawn) == pytest.approx(some["macro_f1"]) != wanted["macro_f1"]

    targets = (DRAW.random((50, 3)) < 0.5).astype(int)
    chosen = [[[n for n, yes in zip("abc", row, strict=True) if yes] for row in side] for side in (targets, logits > 0)]
    wanted, found = multi_label(logits, targets), figures("sets", lines(*chosen))
    assert {name: figure(np.arange(50)) for name, figure in found.items()} == pytest.approx(
        {name: wanted[name] for name in ("micro_f1", "exact_match")}
    )
    numbers = DRAW.normal(size=(2, 50)).round(1)  # with ties
    wanted, found = regression(numbers[1], numbers[0]), figures("numbers", lines(*numbers.tolist()))
    assert {name: figure(np.arange(50)) for name, figure in found.items()} == pytest.approx(
        {name: wanted[name] for name in ("mean_squared_error", "spearman")}
    )
    sides = ([[[0, 2, "A"], [3, 4, "B"]], [], [[1, 2, "A"]]], [[[0, 2, "A"]], [[5, 6, "B"]], [[1, 2, "B"]]])
    assert figures("spans", lines(*sides))["f1"](np.arange(3)) == pytest.approx(
        spans(*([[tuple(span) for span in text] for text in side] for side in sides))["f1"]
    )


def test_mcnemar_by_hand():
    labels, a, b = ["x"] * 20, ["x"] * 12 + ["y"] * 8, ["y"] * 2 + ["x"] * 18
    found = compare("classes", [(lines(labels, a), lines(labels, b)[::-1])])
    p_value = 2 * sum(math.comb(10, n) for n in range(3)) / 2**10
    assert found["mcnemar"] == [{"only_a_right": 2, "only_b_right": 8, "p_value": pytest.approx(p_value)}]
    assert found["accuracy"]["difference"] == pytest.approx(0.3) and found["examples"] == 20


def test_an_interval_covers_what_the_difference_could_be():
    labels = DRAW.integers(0, 2, 600).astype(str).tolist()

    def run(accuracy, seed):
        draw = np.random.default_rng(seed)
        return lines(labels, [label if draw.random() < accuracy else str(1 - int(label)) for label in labels])

    pairs = [(run(0.7, seed), run(0.8, seed + 10)) for seed in range(3)]
    found = compare("classes", pairs)["accuracy"]
    low, high = found["interval"]
    assert (
        low < found["difference"] < high
        and 0 < low < 0.1 < high < 0.2
        and len(compare("classes", pairs)["mcnemar"]) == 3
    )
    same = compare("classes", [(pairs[0][0], pairs[0][0])])
    assert same["accuracy"]["interval"] == [0, 0] and same["mcnemar"][0]["p_value"] == 1.0


def test_other_examples_are_no_comparison():
    a, b = lines(["x", "y"], ["x", "x"]), lines(["x", "y", "x"], ["x", "y", "x"])
    with pytest.raises(
        UserError, match=r"config\.a: lacks 1 of the 3 test examples of the other run, such as 'text 2'"
    ):
        compare("classes", [(a, b)])
    with pytest.raises(
        UserError, match=r"config\.b: lacks 1 of the 3 test examples of the other run, such as 'text 2'"
    ):
        compare("classes", [(b, a)])
    wrong = r"config\.b: 1 of 2 labels are not those of the other run, such as 'x' of 'text 1', there 'y'"
    with pytest.raises(UserError, match=wrong):
        compare("classes", [(a, lines(["x", "x"], ["x", "x"]))])
    with pytest.raises(UserError, match=r"config\.a: its predictions\.jsonl holds no example"):
        compare("classes", [([], [])])
    with pytest.raises(UserError, match=r"config\.b: a line of its predictions\.jsonl has no 'prediction': \{'text'"):
        compare("classes", [(a, [{"text": "text 0", "label": "x"}])])


def test_a_text_that_is_there_twice_counts_twice():
    twice = [("t", "x", "x"), ("t", "x", "y"), ("t", "z", "z"), ("u", "x", "x")]
    a = [{"text": text, "label": label, "prediction": guess} for text, label, guess in twice]
    found = compare("classes", [(a, a[::-1])])
    assert found["examples"] == 4 and found["accuracy"]["a"] == found["accuracy"]["b"] == 0.75
    with pytest.raises(UserError, match=r"config\.b: lacks 1 of the 4 test examples .*such as 't'"):
        compare("classes", [(a, a[1:])])


def test_pairs_of_texts_are_told_apart_by_the_second():
    a = [{"text": "t", "pair": pair, "label": label, "prediction": "x"} for pair, label in (("1", "x"), ("2", "y"))]
    assert compare("classes", [(a, a[::-1])])["accuracy"]["difference"] == 0
    swapped = [line | {"label": "y" if line["label"] == "x" else "x"} for line in a]
    with pytest.raises(UserError, match="2 of 2 labels"):
        compare("classes", [(a, swapped)])


def test_runs_of_several_seeds_may_each_have_an_order_of_their_own():
    labels = DRAW.integers(0, 2, 40).astype(str).tolist()
    guesses = [DRAW.integers(0, 2, 40).astype(str).tolist() for _ in range(4)]
    a, b, c, d = (lines(labels, each) for each in guesses)
    found = compare("classes", [(a, b), (c[::-1], d)])
    assert found == compare("classes", [(a[::-1], b), (c, d)])
    means = [np.mean([x == y for x, y in zip(labels, each, strict=True)]) for each in guesses]
    assert found["accuracy"]["difference"] == pytest.approx((means[1] + means[3] - means[0] - means[2]) / 2)


def test_other_kinds_by_their_own_metrics():
    numbers = DRAW.normal(size=80).tolist()
    near, flat = [value + 0.1 for value in numbers], [0.0] * 80
    found = compare("numbers", [(lines(numbers, [0.5 * value for value in numbers]), lines(numbers, near))])
    assert set(found) == {"examples", "mean_squared_error", "spearman"} and found["spearman"]["difference"] == 0
    assert found["mean_squared_error"]["b"] == pytest.approx(0.01) and found["mean_squared_error"]["interval"][1] < 0
    assert "spearman" not in compare("numbers", [(lines(numbers, near), lines(numbers, flat))]), "of a constant: none"
    spans = [[[0, 3, "A"]]] * 5
    found = compare("spans", [(lines(spans, [[]] * 5), lines(spans, spans))])
    assert (
        found["f1"] == {"a": 0.0, "b": 1.0, "difference": 1.0, "interval": [1.0, 1.0], "p_value": 2 / 1001}
        and "mcnemar" not in found
    )
    found = compare("sets", [(lines([["a"], []], [["a"], ["b"]]), lines([["a"], []], [["a"], []]))])
    assert found["micro_f1"]["difference"] == pytest.approx(1 - 2 / 3)
