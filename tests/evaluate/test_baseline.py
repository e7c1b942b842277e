"""The baseline: it learns what is easy, for every kind of label, and no data make it stumble."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from lepton_jax.evaluate import baseline, metrics

pytestmark = pytest.mark.once

WORDS = ["river", "stone", "cloud", "paper", "window", "garden", "music", "letter", "bridge", "candle"]
MARKS = {"sour": 0, "plain": 1, "sweet": 2}


def made(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Returns texts of random words, and which of the marks each holds, 0 and 1 [count, 3]."""
    draw = np.random.default_rng(seed)
    sets = (draw.random((count, 3)) < 0.5).astype(float)
    texts = []
    for row in sets:
        words = [*draw.choice(WORDS, 8), *(mark for mark, yes in zip(MARKS, row, strict=True) if yes)]
        texts.append(" ".join(draw.permutation(words)))
    return texts, sets


@pytest.fixture(autouse=True)
def quiet():
    """Nothing that the libraries would say about the data reaches a person."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def fit(kind, train, validation, num_classes):
    return baseline.fit_texts(kind, ((train[0], None), train[1]), ((validation[0], None), validation[1]), num_classes)


def test_sets_of_marks_are_found_again():
    predict, (texts, sets) = fit("sets", made(300, 0), made(60, 1), 3), made(100, 2)
    found = metrics.multi_label(predict((texts, None)), sets)
    assert found["micro_f1"] > 0.97 and found["exact_match"] > 0.9
    assert metrics.multi_label(predict((WORDS * 10, None)), sets)["micro_f1"] < 0.8, "of texts without marks"


@pytest.mark.parametrize("classes", [2, 3])
def test_log_probabilities_of_classes(classes):
    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, 200)
    texts = [" ".join([*draw.choice(WORDS, 5), list(MARKS)[label]]) for label in labels]
    scores = fit("classes", (texts[:120], labels[:120]), (texts[120:150], labels[120:150]), classes)(
        (texts[150:], None)
    )
    assert scores.shape == (50, classes) and scores.dtype == np.float64
    np.testing.assert_allclose(np.exp(scores).sum(1), 1)
    assert (scores.argmax(1) == labels[150:]).all()


def test_numbers_far_from_zero():
    (texts, sets), (others, more) = made(300, 0), made(100, 1)
    value = np.array([5.0, 0.0, -3.0])
    predict = fit("numbers", (texts, 100 + sets @ value), (others[:40], 100 + more[:40] @ value), 1)
    found = predict((others[40:], None))
    assert found.shape == (60, 1)
    assert metrics.regression(found[:, 0], 100 + more[40:] @ value)["r2"] > 0.9


def test_validation_chooses_the_regularisation(monkeypatch):
    """Labels of chance in training want little of it, and true ones much."""
    texts, sets = made(300, 0)
    rare = [f"{text} only{number}" for number, text in enumerate(texts)]  # by which every label can be learnt by heart
    noise = np.random.default_rng(0).random(300) < 0.3
    labels = np.where(noise, 1 - sets[:, 0], sets[:, 0]).astype(int)
    used, real = [], baseline._fit_linear

    def record(kind, features, targets, strength, num_classes):
        found = real(kind, features, targets, strength, num_classes)

        def predict(features):
            used.append(strength)
            return found(features)

        return predict

    monkeypatch.setattr(baseline, "_fit_linear", record)
    chosen = {}
    for name, held_out in (("true", (texts, sets[:, 0].astype(int))), ("learnt by heart", (rare, labels))):
        predict = fit("classes", (rare, labels), held_out, 2)
        assert used == [1.0, 4.0, 16.0, 64.0], "each is measured once"
        predict((texts[:2], None))
        chosen[name] = used.pop()
        used.clear()
    assert chosen["true"] < chosen["learnt by heart"]


def test_of_pairs_what_both_have_counts():
    """The label is whether the second text repeats the mark of the first: neither text tells it alone."""
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(600):
        one, other = draw.choice(list(MARKS), 2)
        first, second = (" ".join([*draw.choice(WORDS, 3), mark]) for mark in (one, other))
        rows.append((first, second, int(one == other)))
    first, second, labels = (list(column) for column in zip(*rows, strict=True))
    labels = np.array(labels)

    def part(start, stop, pairs=True):
        return (first[start:stop], second[start:stop] if pairs else None), labels[start:stop]

    def accuracy(pairs):
        predict = baseline.fit_texts("classes", part(0, 450, pairs), part(450, 500, pairs), 2)
        return (predict(part(500, 600, pairs)[0]).argmax(1) == labels[500:]).mean()

    assert accuracy(True) > 0.95 > 0.8 > accuracy(False)


@pytest.mark.parametrize(
    ("text", "unspaced"),
    [
        ("这部电影很好看 ok", True), ("𠀀𠀁𠀂", True), ("ภาษาไทย", True), ("ភាសាខ្មែរ", True), ("とても良い", True),
        ("안녕하세요 세계", False), ("привет мир", False), ("हिन्दी", False), ("a film 好", False), ("123 !?", False),
    ],
)  # fmt: skip
def test_scripts_without_spaces(text, unspaced):
    assert baseline._unspaced([text]) == unspaced


def test_chinese_is_read_by_characters():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 120)
    texts = ["".join([*draw.choice(list("天地玄黄宇宙洪荒"), 6), "好" if label else "坏", "看"]) for label in labels]
    predict = fit("classes", (texts[:80], labels[:80]), (texts[80:90], labels[80:90]), 2)
    assert (predict((texts[90:], None)).argmax(1) == labels[90:]).all()


def test_what_the_data_lack_is_no_mishap():
    nothing: tuple[list[str], np.ndarray] = ([], np.zeros(0, int))
    unique = [f"word{number}" for number in range(300)]  # no two texts have a word in common
    assert fit("classes", (unique, np.arange(300) % 2), nothing, 2)((["word3", "!"], None)).shape == (2, 2)
    same = fit("classes", (["a b", "c"], np.array([0, 0])), nothing, 1)((["a", "d"], None))
    np.testing.assert_allclose(same, 0, atol=1e-12)  # the logarithm of one
    absent = fit("classes", (["a b", "c", "d"], np.array([0, 2, 2])), nothing, 3)((["a", "c"], None))
    assert absent.argmax(1).tolist() == [0, 2] and (absent[:, 1] == absent.min(1)).all()
    one = fit("sets", (["a b", "c", "a"], np.array([[1.0], [0], [1]])), (["a", "c"], np.array([[1.0], [0]])), 1)
    assert (one((["a", "c", "b"], None)) > 0).tolist() == [[True], [False], [True]]
    always = fit("sets", (["a", "c"], np.array([[1.0, 0.0], [1, 0]])), (["a"], np.array([[1.0, 0]])), 2)
    assert (always((["x"], None)) > 0).tolist() == [[True, False]]
    assert fit("numbers", (["a", "b"], np.array([2.0, 2.0])), nothing, 1)(([], None)).shape == (0, 1)


def test_words_by_themselves_their_ends_and_their_neighbours():
    """Class 1: a capital after "from"; class 2: what ends in "ing"; class 0: all else."""
    draw = np.random.default_rng(0)
    names = ["".join(draw.choice(list("abcdefgh"), 4)) for _ in range(400)]
    sentences, classes = [], []
    for place in range(0, 400, 2):
        name, verb = names[place].capitalize(), names[place + 1] + "ing"
        words = [*draw.choice(WORDS, 2), "from", name, "is", verb]
        sentences.append(words)
        classes.append(np.array([0, 0, 0, 1, 0, 2]))
    tag = baseline.fit_words(sentences[:150], classes[:150], 4)
    found = tag([*sentences[150:], []])
    assert len(found) == 51 and found[-1].shape == (0, 4)
    for scores, own in zip(found[:-1], classes[150:], strict=True):
        assert scores.argmax(1).tolist() == own.tolist()
        np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-6)
    assert tag([["Cedar", "is", "old"]])[0].argmax(1)[0] == 0, "a capital alone is no name"


def test_words_of_one_class():
    tag = baseline.fit_words([["a", "b"], ["c"]], [np.array([0, 0]), np.array([0])], 3)
    scores = tag([["a"], ["x", "y"]])
    assert [each.argmax(1).tolist() for each in scores] == [[0], [0, 0]] and tag([]) == []
