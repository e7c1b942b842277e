from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
from collections import Counter
from typing import Any

import pytest

from lepton_jax.config import DataConfig
from lepton_jax.core.errors import UserError
from lepton_jax.data.identity import normalise
from lepton_jax.data.splits import load_splits

pytestmark = pytest.mark.once


def jsonl(path, rows) -> str:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return f"jsonl:{path}"


def rows(count, start=0):
    return [(f"text number {row}", ("bad", "good")[row % 2]) for row in range(start, start + count)]


@pytest.fixture
def train(tmp_path) -> str:
    return jsonl(tmp_path / "train.jsonl", rows(1000))


def parts(splits):
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def assert_disjoint(splits):
    sets = [set(map(normalise, part.texts)) for part in parts(splits).values()]
    for a, b in itertools.combinations(sets, 2):
        assert not a & b


def test_shares_are_a_function_of_text_and_seed(train, tmp_path):
    config = DataConfig(train=train, validation_share=0.1, test_share=0.2)
    splits = load_splits(config, "classes")
    assert_disjoint(splits)
    assert sum(map(len, parts(splits).values())) == 1000
    assert [Counter(part.labels) for part in parts(splits).values()] == [
        {"bad": 350, "good": 350}, {"bad": 50, "good": 50}, {"bad": 100, "good": 100}
    ]  # fmt: skip
    shuffled = rows(1000)
    random.Random(0).shuffle(shuffled)
    other = load_splits(
        DataConfig(train=jsonl(tmp_path / "s.jsonl", shuffled), validation_share=0.1, test_share=0.2), "classes"
    )
    assert splits.test.texts != other.test.texts
    for name, part in parts(splits).items():
        assert set(part.texts) == set(parts(other)[name].texts)
    reseeded = load_splits(DataConfig(train=train, validation_share=0.1, test_share=0.2, split_seed=1), "classes")
    assert set(reseeded.test.texts) != set(splits.test.texts)


def test_cleaning_is_counted_and_no_text_is_shared(tmp_path):
    train = jsonl(
        tmp_path / "train.jsonl",
        [
            *rows(20),
            ("TEXT  number 0", "bad"),
            ("text number 1", "bad"),
            ("in test", "good"),
            ("in validation", "good"),
            ("", "good"),
        ],
    )
    validation = jsonl(
        tmp_path / "validation.jsonl", [("In validation", "good"), ("IN TEST", "bad"), ("in test", "bad")]
    )
    test = jsonl(tmp_path / "test.jsonl", [("in\ttest", "bad"), ("in test", "bad")])
    splits = load_splits(DataConfig(train=train, validation=validation, test=test), "classes")
    assert_disjoint(splits)
    assert splits.test.texts == ["in\ttest"]
    assert splits.validation.texts == ["In validation"]
    assert splits.train.texts == ["text number 0", *(text for text, _ in rows(18, start=2))]
    assert splits.report == {
        "sources": {
            validation: {"read": 3, "dropped": {}},
            test: {"read": 2, "dropped": {}},
            train: {"read": 25, "dropped": {"no text": 1}},
        },
        "train": {"duplicates": 1, "conflicting": 2, "overlap": 2, "examples": 19},
        "validation": {"duplicates": 0, "conflicting": 0, "overlap": 2, "examples": 1},
        "test": {"duplicates": 1, "conflicting": 0, "overlap": 0, "examples": 1},
    }
    assert json.loads(json.dumps(splits.report)) == splits.report


def test_texts_without_labels_have_no_conflicts(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nOne\n")
    splits = load_splits(DataConfig(train=f"text:{tmp_path}/a.txt", validation_share=0), None)
    assert splits.train.texts == ["one", "two"] and splits.train.labels is None
    assert splits.report["train"] == {"duplicates": 1, "conflicting": 0, "overlap": 0, "examples": 2}
    assert len(splits.validation) == len(splits.test) == 0


def test_numbers_are_compared_as_numbers(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [("a", "1"), ("a", 1.0), ("b", 1), ("b", 2), ("c", "-3e-1")])
    splits = load_splits(DataConfig(train=path, validation_share=0), "numbers")
    assert (splits.train.texts, splits.train.labels) == (["a", "c"], [1.0, -0.3])
    assert splits.report["train"]["conflicting"] == 2


def test_a_tfds_source_brings_its_own_splits_unless_it_names_one():
    own = load_splits(DataConfig(train="tfds:movie_sentiment"), "classes")
    assert len(own.validation) == 548 and len(own.test) == 1594
    named = load_splits(DataConfig(train="tfds:movie_sentiment:test"), "classes")
    assert len(named.test) == 0 and set(named.train.texts) | set(named.validation.texts) == set(own.test.texts)


def test_the_rules_hold_for_each_source_of_several(train):
    splits = load_splits(DataConfig(train=f"tfds:movie_sentiment,{train}", label="label", test_share=0.1), None)
    made = [sum(text.startswith("text number") for text in part.texts) for part in parts(splits).values()]
    assert sum(made) == 1000 and 70 < made[2] < 130
    assert len(splits.test) == 1594 + made[2] and len(splits.validation) == 548 + made[1]


def test_max_examples_are_nested_balanced_and_seeded(tmp_path):
    unbalanced = [(f"text {row}", "rare" if row % 20 == 0 else "common") for row in range(1000)]
    path = jsonl(tmp_path / "a.jsonl", unbalanced)

    def chosen(size, seed=0):
        return load_splits(DataConfig(train=path, max_examples=size, split_seed=seed), "classes")

    small, large, everything = chosen(16), chosen(64), chosen(0)
    assert len(small.train) == 16 and len(large.train) == 64 < len(everything.train)
    assert set(small.train.texts) < set(large.train.texts) < set(everything.train.texts)
    assert set(Counter(small.train.labels).values()) == {8}
    assert small.validation.texts == everything.validation.texts
    assert set(chosen(16, seed=1).train.texts) != set(small.train.texts)
    assert len(chosen(10_000).train) == len(everything.train)


@pytest.mark.parametrize(
    ("train", "validation", "labelled", "changes", "message"),
    [
        (
            [("a", "x"), ("b", "x")],
            None,
            "classes",
            {},
            "every label in the column 'label' is 'x'; classification needs",
        ),
        (
            rows(9),
            [("v", "Good")],
            "classes",
            {},
            "data.validation: 1 rows have the label 'Good', which no training example",
        ),
        (rows(2), None, "classes", {}, "data.validation: no example is left (0 read"),
        (
            rows(9),
            rows(9),
            "classes",
            {},
            "data.train: no example is left (9 read, 0 duplicates, 0 conflicting, 9 overlap)",
        ),
        (rows(9), None, "numbers", {}, "train.jsonl:1: 'label' is 'bad', and regression needs a finite number"),
        (rows(9), None, None, {"text": "body"}, "no column 'body'; set data.text to one of 'text', 'label'"),
    ],
)
def test_errors(train, validation, labelled, changes, message, tmp_path):
    fields: dict[str, Any] = {"train": jsonl(tmp_path / "train.jsonl", train)}
    if validation is not None:
        fields["validation"] = jsonl(tmp_path / "validation.jsonl", validation)
    elif "no example" not in message:
        fields["validation_share"] = 0.0
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_splits(DataConfig(**fields, **changes), labelled)
    assert "\n" not in str(caught.value)


def test_short_texts_leave_train_alone_and_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("long enough\n\nshort\n\nsix123\n\nshort\n")
    (tmp_path / "b.txt").write_text("brief\n")
    config = DataConfig(train=f"text:{tmp_path}/a.txt", validation=f"text:{tmp_path}/b.txt", min_characters=6)
    splits = load_splits(config, None)
    assert (splits.train.texts, splits.validation.texts) == (["long enough", "six123"], ["brief"])
    assert splits.report["train"] == {"duplicates": 0, "conflicting": 0, "overlap": 0, "short": 2, "examples": 2}
    with pytest.raises(UserError) as caught:
        load_splits(dataclasses.replace(config, min_characters=12), None)
    assert str(caught.value) == (
        "data.min_characters=12: leaves none of the 4 training texts; the longest has 11 characters"
    )


def test_texts_keep_their_source_through_cleaning(tmp_path):
    for name, texts in (("a", "one two three"), ("b", "two four one five")):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts.split()))
    config = DataConfig(train=f"text:{tmp_path}/a.txt,text:{tmp_path}/b.txt", validation_share=0)
    train = load_splits(config, None).train
    assert list(zip(train.texts, train.sources or (), strict=True)) == [
        ("one", 0), ("two", 0), ("three", 0), ("four", 1), ("five", 1)
    ]  # fmt: skip
    splits = load_splits(dataclasses.replace(config, max_examples=2), None)
    assert len(splits.train.sources or ()) == 2 and splits.report["train"]["beyond_max_examples"] == 3
    with pytest.raises(
        UserError, match=r"data\.weights=\(1\.0,\): 1 weights, but data\.train names 2 sources; give one"
    ):
        load_splits(dataclasses.replace(config, weights=(1.0,)), None)


def test_rare_classes_are_in_every_split_that_they_can_be_in(tmp_path):
    labels = ["common"] * 200 + ["rare"] * 10 + ["thrice"] * 3 + ["twice"] * 2 + ["once"]
    path = jsonl(tmp_path / "a.jsonl", [(f"text {row}", label) for row, label in enumerate(labels)])
    splits = load_splits(DataConfig(train=path, validation_share=0.05, test_share=0.25), "classes")
    assert Counter(splits.validation.labels) == {"common": 10, "rare": 1, "thrice": 1, "twice": 1}
    assert Counter(splits.test.labels) == {"common": 50, "rare": 3, "thrice": 1}
    assert Counter(splits.train.labels) == {"common": 140, "rare": 6, "thrice": 1, "twice": 1, "once": 1}
    assert splits.labels == ("common", "once", "rare", "thrice", "twice")


def test_equal_texts_of_two_classes_stay_together_and_are_counted(tmp_path):
    doubled = [(f"text {row}", label) for row in range(200) for label in ("x", "y")][:300]
    path = jsonl(tmp_path / "a.jsonl", [*doubled, *((f"more {row}", "xy"[row % 2]) for row in range(50))])
    splits = load_splits(DataConfig(train=path, validation_share=0.2), "classes")
    assert sum(splits.report[name]["conflicting"] for name in ("train", "validation", "test")) == 300
    assert splits.report["train"]["overlap"] == 0 and all(text.startswith("more") for text in splits.train.texts)


def test_pairs_are_equal_when_both_texts_are(tmp_path):
    lines = [{"text": "a", "pair": f"b {row}", "label": row % 2} for row in range(40)]
    lines += [{"text": "A", "pair": "B 0", "label": 0}, {"text": "a", "pair": "b  1", "label": 0}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    splits = load_splits(DataConfig(train=f"jsonl:{path}", pair="pair", validation_share=0.25), "classes")
    counts = [splits.report[name] for name in ("train", "validation")]
    assert sum(each["duplicates"] for each in counts) == 1 and sum(each["conflicting"] for each in counts) == 2
    pairs = [set(part.pairs) for part in (splits.train, splits.validation)]
    assert len(pairs[0]) + len(pairs[1]) == 39 and not pairs[0] & pairs[1] and len(pairs[1]) >= 9


def test_sources_out_of_domain_stand_alone_and_leave_train(train, tmp_path):
    far = jsonl(tmp_path / "far.jsonl", [("far away", "good"), ("Text number 0", "bad"), ("far away", "good")])
    splits = load_splits(DataConfig(train=train, out_of_domain=far, validation_share=0.1), "classes")
    assert splits.out_of_domain[far].texts == ["far away", "Text number 0"]
    assert splits.report["out_of_domain"][far] == {"duplicates": 1, "conflicting": 0, "overlap": 0, "examples": 2}
    assert "text number 0" not in splits.train.texts + splits.validation.texts
    assert splits.report["train"]["overlap"] + splits.report["validation"]["overlap"] == 1
    odd = jsonl(tmp_path / "odd.jsonl", [("x", "ugly")])
    with pytest.raises(UserError, match=r"odd\.jsonl: 1 rows have the label 'ugly', which no training example has"):
        load_splits(DataConfig(train=train, out_of_domain=odd), "classes")


@pytest.mark.parametrize(
    ("kind", "labels", "names"),
    [
        ("classes", ["10", "9", "2"], ("2", "9", "10")),
        ("classes", ["1.0", "1", "01", "nan"], ("01", "1", "1.0", "nan")),
        ("sets", [["b", "a"], [], ["c"]], ("a", "b", "c")),
        ("spans", [[[0, 1, "Y"]], [], [[2, 3, "X"]]], ("X", "Y")),
        ("numbers", [3, 1, 2], ()),
    ],
)
def test_labels_are_named_in_order_and_known_to_train(tmp_path, kind, labels, names):
    train = jsonl(tmp_path / "a.jsonl", [(f"text {row}", label) for row, label in enumerate(labels)])
    splits = load_splits(DataConfig(train=train, validation_share=0), kind)
    assert splits.labels == names
    assert splits.train.sources == [0] * len(labels) and splits.train.source_names == (train,)
    if kind in ("sets", "spans"):
        other = jsonl(tmp_path / "b.jsonl", [("new", ["z"] if kind == "sets" else [[0, 1, "z"]])])
        with pytest.raises(UserError, match=r"data\.test: 1 rows have the label 'z', which no training example has"):
            load_splits(DataConfig(train=train, validation_share=0, test=other), kind)
    same = jsonl(tmp_path / "c.jsonl", [("a", labels[1]), ("b", labels[1])])
    with pytest.raises(UserError, match="every label in the column 'label' is"):
        load_splits(DataConfig(train=same, validation_share=0), kind)
