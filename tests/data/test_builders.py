"""The real sets, from the user's own cache: the first run fetches them, later ones work offline."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from lepton_jax.config import DataConfig
from lepton_jax.data.builders.news_articles import repair
from lepton_jax.data.identity import normalise
from lepton_jax.data.splits import load_splits

# Rows of each split, and of each label in train. They change only with a builder's version.
GOLDEN = {
    "movie_sentiment": ((8424, 548, 1594), {"positive": 4194, "negative": 4230}),
    "chinese_sentiment": ((13937, 869, 2552), {"negative": 7287, "positive": 6650}),
    "news_articles": ((3678, 103, 0), None),
    "opinion_snippets": ((12556, 397, 0), None),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_counts_labels_and_no_text_in_two_splits(name):
    sizes, labels = GOLDEN[name]
    splits = load_splits(DataConfig(train=f"tfds:{name}"), labelled="classes" if labels else None)
    parts = (splits.train, splits.validation, splits.test)
    assert tuple(map(len, parts)) == sizes
    assert (dict(Counter(splits.train.labels)) if labels else splits.train.labels) == labels
    texts = [normalise(text) for part in parts for text in part.texts]
    assert len(set(texts)) == len(texts) == sum(sizes)
    for split in ("train", "validation", "test"):  # the builder has cleaned: nothing is left to do
        assert not any(splits.report[split][reason] for reason in ("duplicates", "conflicting", "overlap"))
    assert "tensorflow" not in sys.modules


def test_the_rating_is_a_number_whose_sign_is_the_label():
    config = DataConfig(train="tfds:movie_sentiment", label="rating")
    ratings = load_splits(config, "numbers")
    classes = load_splits(DataConfig(train="tfds:movie_sentiment"), "classes")
    assert ratings.test.texts == classes.test.texts
    for rating, label in zip(ratings.test.labels or (), classes.test.labels or (), strict=True):
        assert -4 <= float(rating) <= 4
        assert label == ("positive" if float(rating) > 0 else "negative")


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ('he can"t, I\'m sure it"s so', "he can't, I'm sure it's so"),
        ('we"\ufffdll go, O"\ufffdNeill said', "we'll go, O'Neill said"),
        ('said the media."?The committee', 'said the media." The committee'),
        ('a surprise move "?Fillon had said', "a surprise move - Fillon had said"),
        ('on the right track"\ufffdparticularly here', "on the right track - particularly here"),
        ('more "than de minimis"? Who?', 'more "than de minimis"? Who?'),  # a real question mark
        ('worth "\ufffdover \ufffd9bn', 'worth "over 9bn'),
        ("many    spaces ", "many spaces"),
    ],
)
def test_repair_of_the_news_corpus(broken, whole):
    assert repair(broken) == whole


def test_the_news_corpus_comes_repaired():
    texts = load_splits(DataConfig(train="tfds:news_articles"), None).train.texts
    assert not any("\ufffd" in text for text in texts)
    assert sum(text.count('"?') for text in texts) < 150  # 6,195 before
    assert sum("\n" in text for text in texts) > 0.98 * len(texts)  # title, then body; 60 have no title
