"""The real sets, from the user's own cache: the first run fetches them, later ones work offline."""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import ClassVar

import pytest
import tensorflow_datasets as tfds

from lepton_jax.config import DataConfig
from lepton_jax.data import registry
from lepton_jax.data.builders.chinese_entities import entities
from lepton_jax.data.builders.news_articles import repair
from lepton_jax.data.builders.package import PackageBuilder
from lepton_jax.data.builders.sms_spam import mend
from lepton_jax.data.identity import normalise
from lepton_jax.data.sources import load
from lepton_jax.data.splits import Splits, load_splits

pytestmark = pytest.mark.once

# Rows of each split, and of each label (or type of span) in train. They change only with a builder's version.
GOLDEN = {
    "movie_sentiment": ((8424, 548, 1594), {"positive": 4194, "negative": 4230}),
    "product_sentiment": ((1082, 519, 1999), {"positive": 677, "negative": 405}),
    "editorial_sentiment": ((1320, 452, 3106), {"positive": 576, "negative": 744}),
    "tweet_sentiment": ((1239, 391, 2506), {"positive": 876, "negative": 363}),
    "chinese_sentiment": ((13937, 869, 2552), {"negative": 7287, "positive": 6650}),
    "trec_questions": (
        (4528, 262, 589),
        {"ENTY": 1056, "HUM": 1005, "DESC": 983, "NUM": 727, "LOC": 686, "ABBR": 71},
    ),
    "sms_spam": ((3605, 244, 661), {"ham": 3147, "spam": 458}),
    "news_articles": ((3678, 103, 0), None),
    "opinion_snippets": ((12556, 397, 0), None),
    "tweet_entities": (
        (1573, 224, 484),
        {"company": 111, "facility": 66, "geo-loc": 193, "movie": 22, "musicartist": 34, "other": 140, "person": 309,
         "product": 68, "sportsteam": 31, "tvshow": 20},
    ),
    "chinese_entities": ((16235, 896, 1862), {"LOC": 22308, "PER": 16955, "MISC": 3051, "ORG": 2969}),
}  # fmt: skip
COLUMNS = {
    "trec_questions": {"label": "coarse"},
    "tweet_entities": {"text": "tokens", "label": "tags"},
    "chinese_entities": {"label": "entities"},
}


def splits_of(name: str, **columns: str) -> Splits:
    kind = "spans" if name.endswith("entities") else "classes"
    config = DataConfig(train=f"tfds:{name}", **(columns or COLUMNS.get(name, {})))
    return load_splits(config, kind if name == "newsgroups" or GOLDEN[name][1] else None)


def assert_clean(splits: Splits, sizes: tuple[int, int, int]) -> None:
    parts = (splits.train, splits.validation, splits.test)
    assert tuple(map(len, parts)) == sizes
    texts = [normalise(text) for part in parts for text in part.texts]
    assert len(set(texts)) == len(texts) == sum(sizes)
    for split in ("train", "validation", "test"):  # the builder has cleaned: nothing is left to do
        assert not any(splits.report[split][reason] for reason in ("duplicates", "conflicting", "overlap"))
    assert not any(splits.report["sources"][source]["dropped"] for source in splits.report["sources"])
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", GOLDEN)
def test_counts_labels_and_no_text_in_two_splits(name):
    sizes, labels = GOLDEN[name]
    splits = splits_of(name)
    assert_clean(splits, sizes)
    if name not in ("movie_sentiment", "opinion_snippets", "chinese_sentiment"):  # which are kept as they came
        texts = splits.train.texts + splits.validation.texts + splits.test.texts
        assert not [text for text in texts if re.search(r"[\x80-\x9f\ufffd]|&(amp|lt|gt|quot|#\d+);", text)]
    if name.endswith("entities"):
        assert Counter(label for spans in splits.train.labels or () for _, _, label in spans) == labels
    else:
        assert (dict(Counter(splits.train.labels)) if labels else splits.train.labels) == labels


def test_newsgroups_keep_the_test_postings_of_others():
    splits = splits_of("newsgroups")
    assert_clean(splits, (10713, 549, 7519))
    groups = Counter(splits.train.labels)
    assert len(groups) == len(set(splits.test.labels or ())) == 20
    assert (groups["rec.sport.hockey"], groups["talk.religion.misc"]) == (573, 361)


@pytest.mark.parametrize("name", ["product_sentiment", "editorial_sentiment"])
def test_the_sentences_of_a_document_are_in_one_split(name):
    documents = [set(load(f"tfds:{name}:{split}", label="document").labels or ()) for split in ("train", "test")]
    assert min(map(len, documents)) > 80 and not documents[0] & documents[1]


def test_the_fine_class_of_a_question_says_the_coarse_one():
    coarse, fine = splits_of("trec_questions"), splits_of("trec_questions", label="fine")
    assert coarse.test.texts == fine.test.texts and len(fine.labels) > 40
    assert coarse.test.labels == [label.split(":")[0] for label in fine.test.labels or ()]


def test_mending_of_messages():
    assert mend("&lt;#&gt;  That\x92s \x93it\x94 &amp;#38; &amp;amp; \xa31") == "<#> That’s “it” & & £1"


def test_names_in_tweets_are_parts_of_their_text():
    train = splits_of("tweet_entities").train
    found = {(text[start:end], label) for text, spans in zip(train.texts, train.labels or (), strict=True)
             for start, end, label in spans}  # fmt: skip
    assert ("Empire State Building", "facility") in found and ("Mr . Van", "person") in found


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("中共中央/nt 总书记/n 、/w 国家/n 主席/n 江/nr 泽民/nr", [("中共中央", "ORG"), ("江泽民", "PER")]),
        ("李/nr 鹏/nr 乔/nr 石/nr 等/u", [("李鹏", "PER"), ("乔石", "PER")]),
        ("陈/nr 方/nr 安生/nr", [("陈方安生", "PER")]),
        ("吴/nr 希曾/nr 刘/nr 伯根/nr 岑红/nr", [("吴希曾", "PER"), ("刘伯根", "PER"), ("岑红", "PER")]),
        ("１２月/t 新华社/nt 北京/ns 石景山/ns 电/n", [("新华社", "ORG"), ("北京石景山", "LOC")]),
        ("ＩＢＭ/nx 的/u Ａ/B/nz", [("Ａ/B", "MISC")]),
    ],
)
def test_neighbouring_chinese_words_are_one_name(line, names):
    text, spans = entities(line)
    assert text == "".join(word.rsplit("/", 1)[0] for word in line.split())
    assert [(text[start:end], label) for start, end, label in spans] == names


class ToyPackage(PackageBuilder):
    """Rows of a made file: repeated, contradicting, of documents, and with a split of their own."""

    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = ("toy", "1", "")
    SHARES: ClassVar[dict[str, float]] = {"train": 0.5, "validation": 0.5}
    HOMEPAGE = "https://example.org"
    LABEL = "grade"

    def _features(self):
        text = tfds.features.Text()
        return {**super()._features(), "grade": text, "document": text}

    def rows(self, archive):
        yield {"text": "Kept", "grade": "a", "document": "x", "split": "test"}
        yield {"text": "kept ", "grade": "a", "document": "y", "split": "train"}
        yield {"text": "both", "grade": "a", "document": "x"}
        yield {"text": "Both", "grade": "b", "document": "x"}
        yield {"text": " ", "grade": "b", "document": "x"}
        for number in range(60):
            yield {"text": f"text {number}", "grade": "a", "document": f"document {number % 6}", "split": None}


def test_a_package_builder_cleans_and_divides_by_document(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "fetch", lambda *args, **kwargs: tmp_path)
    builder = ToyPackage(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    rows = {name: list(builder.as_data_source(split=name)) for name in builder.info.splits}
    assert [(row["text"], row["document"]) for row in rows["test"]] == [(b"Kept", b"x")]
    documents = [{row["document"] for row in rows[name]} for name in ("train", "validation")]
    assert all(documents) and len(documents[0]) + len(documents[1]) == 6
    assert len(rows["train"]) + len(rows["validation"]) == 60


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
