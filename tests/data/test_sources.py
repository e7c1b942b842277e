from __future__ import annotations

import contextlib
import datetime
import json
import re
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lepton_jax.core.errors import UserError
from lepton_jax.data import tfds_sets
from lepton_jax.data.sources import load, split_spec
from lepton_jax.data.tfds_sets import class_names, own_splits

pytestmark = pytest.mark.once


class ToyReviews(tfds.core.GeneratorBasedBuilder):
    """A set with one text feature that is not called text, and a test split that hides its labels, like GLUE's."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "sentence": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["bad", "good"]),
            "stars": tfds.features.Scalar(np.float64),
            "place": tfds.features.Tensor(shape=(), dtype=np.str_),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6, True), "test": self._generate_examples(2, False)}

    def _generate_examples(self, count, labelled):
        for row in range(count):
            label = row % 2 if labelled else -1
            yield row, {"sentence": f"sentence {row} é", "label": label, "stars": row + 0.5, "place": "here"}


class ToyNames(ToyReviews):
    def _info(self):
        span = {"start": np.int32, "end": np.int32, "label": tfds.features.ClassLabel(names=["LOC", "PER"])}
        words, tags = tfds.features.Text(), tfds.features.ClassLabel(names=["O", "B-LOC", "B-PER"])
        features = {
            "text": tfds.features.Text(),
            "names": tfds.features.Sequence(span),
            "words": tfds.features.Sequence(words),
            "tags": tfds.features.Sequence(tags),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, count, labelled):
        names = [{"start": 0, "end": 3, "label": "PER"}, {"start": 7, "end": 11, "label": "LOC"}]
        words = {"words": ["Ann", "in", "Bern"], "tags": ["B-PER", "O", "B-LOC"]}
        yield 0, {"text": "Ann in Bern", "names": names, **words}
        yield 1, {"text": "No one", "names": [], "words": ["No", "one"], "tags": ["O", "O"]}


class UnreachableReviews(ToyReviews):
    def _split_generators(self, dl_manager):
        raise ConnectionError("no route to host\nand a second line")


class TwoTexts(ToyReviews):
    def _info(self):
        features = {"first": tfds.features.Text(), "second": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, count, labelled):
        yield 0, {"first": "a", "second": "b"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_text_documents_are_separated_by_blank_lines(tmp_path):
    write(tmp_path, "a.txt", "\n\nfirst\nstill first\n\n \t\nsecond\r\n\r\nthird\n")
    write(tmp_path, "b.txt", b"\xef\xbb\xbffourth")
    assert load(f"text:{tmp_path}/a.txt", label=None).texts == ["first\nstill first", "second", "third"]
    assert load(f"text:{tmp_path}/*.txt", label=None).texts[-1] == "fourth"
    assert load(f"text:{tmp_path}/**/*.txt", label=None).labels is None


def test_jsonl_keeps_values_and_counts_what_it_drops(tmp_path):
    rows = [
        {"body": " one\u2028line ", "stars": 4},
        {"body": "two", "stars": 2.5, "more": []},
        {"body": "three", "stars": True},
        {"body": "  ", "stars": 1},
        {"body": None, "stars": 1},
        {"body": "six", "stars": None},
        {"body": "seven"},
        {"body": "八", "stars": "words"},
    ]
    path = write(tmp_path, "rows.jsonl", "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    examples = load(f"jsonl:{path}", text="body", label="stars")
    assert examples.texts == ["one\u2028line", "two", "three", "八"]
    assert examples.labels == ["4", "2.5", "true", "words"]
    assert examples.dropped == {"no text": 2, "no label": 2}
    assert len(load(f"jsonl:{path}", text="body", label=None)) == 6


def test_csv_has_quotes_and_tsv_has_none(tmp_path):
    csv_path = write(tmp_path, "a.csv", 'label,text\r\ngood,"two\nlines, ""quoted"""\r\n\r\n ,dropped\r\nbad,plain\r\n')
    tsv_path = write(tmp_path, "a.tsv", 'text\tlabel\n"open quote\tgood\nplain, too\tbad\n')
    examples = load(f"csv:{csv_path}")
    assert (examples.texts, examples.labels) == (['two\nlines, "quoted"', "plain"], ["good", "bad"])
    assert examples.dropped == {"no label": 1}
    examples = load(f"tsv:{tsv_path}")
    assert (examples.texts, examples.labels) == (['"open quote', "plain, too"], ["good", "bad"])


def test_a_long_csv_field_is_read(tmp_path):
    path = write(tmp_path, "a.csv", "text\n" + "x" * 200_000 + "\n")
    assert len(load(f"csv:{path}", label=None).texts[0]) == 200_000


def test_several_sources_are_joined_in_order_and_commas_in_paths_are_kept(tmp_path):
    write(tmp_path, "a,b.txt", "one")
    write(tmp_path, "c.txt", "two")
    spec = f"text:{tmp_path}/a,b.txt, text:{tmp_path}/c.txt"
    assert len(split_spec(spec)) == 2
    assert load(spec, label=None).texts == ["one", "two"]


GOOD = '{"text": "x", "label": 1}'
BAD_FILES = {
    "missing": ("jsonl:{dir}/no", {}, "{dir}/no: no such file, and no file matches it as a glob"),
    "folder": ("csv:{dir}", {}, "csv:{dir}: is a folder; write {dir}/* for the files in it"),
    "kind": ("json:{dir}/a", {"a": ""}, 'unknown kind of source, did you mean "jsonl"?'),
    "no kind": ("words", {}, "'words': unknown kind of source"),
    "not UTF-8": ("csv:{dir}/a", {"a": b"ok\ncaf\xe9 au lait"}, "{dir}/a:2: byte 0xe9 at offset 6 is not UTF-8"),
    "not UTF-8, marked": ("csv:{dir}/a", {"a": b"\xef\xbb\xbfa\n\xff"}, "{dir}/a:2: byte 0xff at offset 5"),
    "labels of text": ("text:{dir}/a", {"a": "words"}, "text:{dir}/a: plain text has no labels"),
    "JSON": ("jsonl:{dir}/a", {"a": GOOD + '\n{"text": '}, "{dir}/a:2: not valid JSON (Expecting value"),
    "JSON depth": ("jsonl:{dir}/a", {"a": "[" * 100_000}, "{dir}/a:1: not valid JSON (too deep)"),
    "JSON digits": ("jsonl:{dir}/a", {"a": '{"text": ' + "9" * 5000 + "}"}, "a:1: not valid JSON (a number too long)"),
    "two columns": ("csv:{dir}/a", {"a": "text,label,label\n"}, "{dir}/a:1: 2 columns have the name 'label', which"),
    "JSON list": ("jsonl:{dir}/a", {"a": "[1]"}, "{dir}/a:1: must be a JSON object such as"),
    "CoNLL": ("conll:{dir}/a", {"a": "He O\nsaw\n"}, "{dir}/a:2: one column; a line must have a word and its tag"),
    "JSON value": ("jsonl:{dir}/a", {"a": '{"text": ["x"], "label": 1}'}, "{dir}/a:1: 'text' must be a string"),
    "surrogate": ("jsonl:{dir}/a", {"a": '{"text": "\\ud800", "label": 1}'}, "{dir}/a:1: 'text' holds half of a"),
    "JSON label": (
        "jsonl:{dir}/a",
        {"a": '{"text": "x", "stars": 1}'},
        "a:1: no column 'label'; set data.label to one of",
    ),
    "JSON text": (
        "jsonl:{dir}/a",
        {"a": GOOD + '\n{"label": 1}'},
        "{dir}/a:2: no column 'text'; set data.text to one of",
    ),
    "CSV column": (
        "csv:{dir}/a",
        {"a": "text,n\nx,1\n"},
        "{dir}/a:1: no column 'label'; set data.label to one of 'text', 'n'",
    ),
    "CSV fields": ("csv:{dir}/a", {"a": "text,label\nx,1\nx,y,1\n"}, "{dir}/a:3: 3 fields, but the first line names 2"),
    "CSV quote": ("csv:{dir}/a", {"a": 'text,label\n"x" y,1\n'}, "{dir}/a:2: not valid CSV"),
    "empty": ("csv:{dir}/a", {"a": ""}, "csv:{dir}/a: holds no labelled text"),
    "unusable": (
        "csv:{dir}/a",
        {"a": "text,label\n,1\nx,\n"},
        "csv:{dir}/a: holds no labelled text, 1 rows with no text, 1 rows with no label",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_one_clear_line(case, tmp_path):
    spec, files, message = BAD_FILES[case]
    for name, content in files.items():
        write(tmp_path, name, content)
    with pytest.raises(UserError, match=re.escape(message.format(dir=tmp_path))) as caught:
        load(spec.format(dir=tmp_path))
    assert "\n" not in str(caught.value)


def test_may_be_empty(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\nwords,\n")
    examples = load(f"csv:{path}", may_be_empty=True)
    assert len(examples) == 0 and examples.dropped == {"no label": 1}


def jsonl(folder, *rows):
    return f"jsonl:{write(folder, 'rows.jsonl', chr(10).join(json.dumps(row) for row in rows))}"


def test_numbers_are_finite(tmp_path):
    spec = jsonl(tmp_path, {"text": "a", "label": 1}, {"text": "b", "label": "-2.5e0"}, {"text": "c", "label": None})
    examples = load(spec, kind="numbers")
    assert examples.labels == [1.0, -2.5] and examples.dropped == {"no label": 1}
    for label in ("good", "nan", "inf", True):
        spec = jsonl(tmp_path, {"text": "a", "label": 1}, {"text": "b", "label": label})
        with pytest.raises(UserError, match=r"rows\.jsonl:2: 'label' is .* regression needs a finite number"):
            load(spec, kind="numbers")


def test_sets_are_lists_or_names_with_bars(tmp_path):
    spec = jsonl(
        tmp_path, {"text": "a", "label": ["y", "x", "y"]}, {"text": "b", "label": []}, {"text": "c", "label": None}
    )
    examples = load(spec, kind="sets")
    assert examples.labels == [("x", "y"), ()] and examples.dropped == {"no label": 1}
    table = write(tmp_path, "a.csv", "text,label\na,x | y\nb,\n")
    assert load(f"csv:{table}", kind="sets").labels == [("x", "y"), ()]
    with pytest.raises(UserError, match=r":1: 'label' must be a list of labels, not dict"):
        load(jsonl(tmp_path, {"text": "a", "label": {}}), kind="sets")


@pytest.mark.parametrize("label", [
    [{"start": 8, "end": 9, "label": "Y"}, {"start": 4, "end": 6, "label": "X"}],
    [[8, 9, "Y"], [4, 6, "X"]],
    [[7, 10, "Y"], [3, 7, "X"]],
])  # fmt: skip
def test_spans_of_a_text_are_in_order_and_without_spaces(tmp_path, label):
    examples = load(jsonl(tmp_path, {"text": "  a bc  d ", "label": label}), kind="spans")
    assert examples.texts == ["a bc  d"] and examples.labels == [((2, 4, "X"), (6, 7, "Y"))]


def test_words_with_tags_become_a_text_with_spans(tmp_path):
    words = {"text": ["He", "saw", "New", "York", "."], "label": ["O", "O", "B-LOC", "I-LOC", "O"]}
    wanted = (["He saw New York ."], [((7, 15, "LOC"),)])
    examples = load(jsonl(tmp_path, words), kind="spans")
    assert (examples.texts, examples.labels) == wanted
    lines = "-DOCSTART- -X- O\n\nHe PRP O\nsaw VBD O\nNew NNP I-LOC\nYork NNP I-LOC\n. . O\n\t\nAlone O\n"
    examples = load(f"conll:{write(tmp_path, 'a.conll', lines)}", kind="spans")
    assert examples.texts == [*wanted[0], "Alone"] and examples.labels == [*wanted[1], ()]


def test_words_without_a_character_are_no_names(tmp_path):
    row = {"text": ["Ann", "", None, "in", "Bern"], "label": ["B-PER", "I-PER", "B-LOC", "O", "B-LOC"]}
    examples = load(jsonl(tmp_path, row), kind="spans")
    assert (examples.texts, examples.labels) == (["Ann in Bern"], [((0, 3, "PER"), (7, 11, "LOC"))])


def test_a_file_of_words_has_no_pairs(tmp_path):
    with pytest.raises(UserError, match=r"a\.conll: a file of words with tags has no pairs; leave data\.pair empty"):
        load(f"conll:{write(tmp_path, 'a.conll', 'He O')}", pair="other", kind="spans")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": ["a", "b"], "label": ["O"]}, ":1: 1 tags in 'label', 2 words in 'text'"),
        ({"text": ["a"], "label": ["X-A"]}, ":1: 'label': tag 'X-A': must be O, or such as B-TYPE or I-TYPE"),
        ({"text": ["a"], "label": [[0, 1, "X"]]}, ":1: 'label' must be a list of tags, one a word of 'text'"),
        ({"text": "a", "label": "O"}, """:1: 'label' must be a list of {"start", "end", "label"}, for 'text' is a"""),
        ({"text": "abc", "label": [[0, 4, "X"]]}, ":1: 'label': [0, 4) is no part of the text, which has 3 characters"),
        ({"text": "abc", "label": [[2, 2, "X"]]}, "[2, 2) is no part of the text"),
        ({"text": "abc", "label": [[0, 2, "X"], [1, 3, "Y"]]}, ":1: 'label': spans overlap at character 1"),
        ({"text": "abc", "label": [{"start": 0, "label": "X"}]}, "is no {"),
        ({"text": "abc", "label": [[0, True, "X"]]}, "is no {"),
    ],
)  # fmt: skip
def test_bad_spans_are_one_clear_line(tmp_path, row, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load(jsonl(tmp_path, row), kind="spans")


def test_pairs_are_read_from_their_column(tmp_path):
    rows = [{"a": "one", "b": "two", "label": 1}, {"a": "", "b": "x", "label": 0}, {"a": " ", "b": "", "label": 0}]
    examples = load(jsonl(tmp_path, *rows), text="a", pair="b")
    assert (examples.texts, examples.pairs) == (["one", ""], ["two", "x"]) and examples.dropped == {"no text": 1}
    with pytest.raises(UserError, match=r"no column 'c'; set data\.pair to one of 'a', 'b', 'label'"):
        load(jsonl(tmp_path, *rows), text="a", pair="c")


def test_parquet_is_read_by_columns(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {"text": ["a", None, "c"], "label": [1, 2, None], "tags": [["x"], [], None], "more": [b"", b"", b""]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    examples = load(f"parquet:{tmp_path}/a.parquet")
    assert (examples.texts, examples.labels) == (["a"], ["1"]) and examples.dropped == {"no text": 1, "no label": 1}
    assert load(f"parquet:{tmp_path}/a.parquet", label="tags", kind="sets").labels == [("x",)]
    with pytest.raises(UserError, match=r"no column 'name'; set data\.label to one of 'text', 'label', 'tags', 'more'"):
        load(f"parquet:{tmp_path}/a.parquet", label="name")
    columns = {"text": [b"caf\xc3\xa9", b"\xe9"], "day": [datetime.date(2020, 1, 2)] * 2}
    pq.write_table(pa.table(columns), tmp_path / "c")
    assert load(f"parquet:{tmp_path}/c", text="day", label=None).texts == ["2020-01-02"] * 2
    with pytest.raises(UserError, match=r"c: row 2: 'text' holds the byte 0xe9, not UTF-8"):
        load(f"parquet:{tmp_path}/c", label=None)
    whole = pa.table({"text": ["word"] * 1000})
    pq.write_table(whole, tmp_path / "d", compression="none", use_dictionary=False)
    write(tmp_path, "d", (tmp_path / "d").read_bytes().replace(b"word", b"w\xffrd"))
    with pytest.raises(UserError, match=r"/d: not a Parquet file that can be read \('utf-8' codec can't decode"):
        load(f"parquet:{tmp_path}/d", label=None)
    write(tmp_path, "b.parquet", "no table")
    with pytest.raises(UserError, match=r"b\.parquet: not a Parquet file that can be read \(Parquet magic bytes"):
        load(f"parquet:{tmp_path}/b.parquet")


def test_a_line_of_a_megabyte_is_a_text(tmp_path):
    assert len(load(jsonl(tmp_path, {"text": "word " * 250_000, "label": "x"})).texts[0]) == 1_249_999


def test_tfds_set_with_another_text_column_and_hidden_labels(cache):
    examples = load("tfds:toy_reviews", cache=cache)
    assert sorted(zip(examples.texts, examples.labels or (), strict=True))[:2] == [
        ("sentence 0 é", "bad"),
        ("sentence 1 é", "good"),
    ]
    assert len(load("tfds:toy_reviews:train[:50%]", cache=cache)) == 3
    assert load("tfds:toy_reviews:1.0.0:train+test", cache=cache).dropped == {"no label": 2}
    assert len(load("tfds:toy_reviews:train+test", label=None, cache=cache)) == 8
    assert sorted(load("tfds:toy_reviews", label="stars", cache=cache).labels or ())[0] == "0.5"
    assert set(load("tfds:toy_reviews", label="place", cache=cache).labels or ()) == {"here"}
    assert own_splits("tfds:toy_reviews", cache) == ["train", "test"]
    assert class_names("tfds:toy_reviews:test", "label", cache) == ("bad", "good")
    assert class_names("tfds:toy_reviews", "stars", cache) == class_names("csv:a", "label", cache) == ()
    assert own_splits("tfds:toy_reviews:train", cache) == own_splits("text:a", cache) == []
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(("text", "label"), [("text", "names"), ("words", "tags")])
def test_spans_of_a_tfds_set_are_objects_or_tags(cache, text, label):
    examples = load("tfds:toy_names", text=text, label=label, kind="spans", cache=cache)
    assert dict(zip(examples.texts, examples.labels or (), strict=True)) == {
        "Ann in Bern": ((0, 3, "PER"), (7, 11, "LOC")), "No one": ()
    }  # fmt: skip


def test_a_set_that_another_process_prepares_meanwhile_is_read(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def wait(folder):
        tfds.builder("toy_reviews", data_dir=str(folder), file_format="array_record").download_and_prepare()
        yield

    monkeypatch.setattr(tfds_sets, "locked", wait)
    assert len(load("tfds:toy_reviews", cache=str(tmp_path))) == 6


@pytest.mark.parametrize(
    ("spec", "columns", "message"),
    [
        ("tfds:toy_reviewz", {}, "tfds:toy_reviewz: unknown TFDS set; did you mean 'toy_reviews'?"),
        (
            "tfds:qqqqq",
            {},
            "tfds:qqqqq: unknown TFDS set; known besides TFDS's own: chinese_entities, chinese_sentiment",
        ),
        ("tfds:glue/sst3", {}, "tfds:glue/sst3: BuilderConfig sst3 not found"),
        (
            "tfds:toy_reviews:9.0.0:train",
            {},
            "tfds:toy_reviews:9.0.0: Dataset toy_reviews cannot be loaded at version 9",
        ),
        ("tfds:toy_reviews:dev", {}, "tfds:toy_reviews: no split 'dev'; it has train, test"),
        ("tfds:toy_reviews:train[:10", {}, "tfds:toy_reviews: no split 'train[:10'"),
        ("tfds::train", {}, "tfds::train: must be tfds:NAME or tfds:NAME:SPLIT"),
        ("tfds:toy_reviews", {"label": "grade"}, "no column 'grade'; set data.label to one of 'sentence', 'label'"),
        ("tfds:toy_reviews", {"text": "stars"}, "the column 'stars' is no text; text columns: 'sentence'"),
        ("tfds:two_texts", {"label": None}, "no column 'text'; set data.text to one of 'first', 'second'"),
        ("tfds:unreachable_reviews", {}, "cannot be prepared here (ConnectionError: no route to host)"),
    ],
)
def test_bad_tfds_specs_are_one_clear_line(spec, columns, message, cache):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load(spec, cache=cache, **columns)
    assert "\n" not in str(caught.value)
