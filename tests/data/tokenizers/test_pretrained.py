"""Tokenizers of checkpoints against transformers, on real lines."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers as library
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lepton_jax.core.errors import UserError
from lepton_jax.data import tokenizers
from lepton_jax.data.tokenizers import PretrainedTokenizer, pretrained

pytestmark = pytest.mark.once

KINDS = ("minilm", "bert", "distilbert", "electra", "roberta", "roberta-space", "gpt2", "albert", "deberta",
         "xlm-roberta", "modernbert")  # fmt: skip
# The second text has type 1.
TYPED = (
    "minilm",
    "bert",
    "distilbert",
    "electra",
    "albert",
    "deberta",
    "modernbert",
    "gpt2",
)
LENGTH = 24


@pytest.fixture(scope="module")
def both(kind_folder, monkeymodule):
    """A function that returns (ours, transformers') of a kind."""
    made = {}

    def load(kind: str) -> tuple[PretrainedTokenizer, PreTrainedTokenizerBase]:
        if kind not in made:
            ours = tokenizers.load(kind_folder(kind))
            theirs = AutoTokenizer.from_pretrained(kind_folder(kind), local_files_only=True)
            if theirs.backend_tokenizer.truncation or theirs.backend_tokenizer.padding:
                assert kind in ("minilm", "modernbert")  # tokenizer.json may ask for both
            theirs.backend_tokenizer.no_truncation()
            theirs.backend_tokenizer.no_padding()
            theirs.model_max_length = 10**6
            made[kind] = ours, theirs
        return made[kind]

    return load


@pytest.fixture(scope="module")
def monkeymodule():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield patch


def expected(theirs, kind, texts, pairs=None, **arguments):
    """Returns transformers' ids, types, offsets of each row, and which text each token is from."""
    if kind == "deberta":
        # transformers 5 leaves out the character map of a spm.model. Here the text went through NFKC before.
        assert all(unicodedata.is_normalized("NFKC", text) for text in texts)
    found = theirs(texts, pairs, return_token_type_ids=True, return_offsets_mapping=True, split_special_tokens=True,
                   padding=False, **arguments)  # fmt: skip
    sequences = [[-1 if number is None else number for number in row.sequence_ids] for row in found.encodings]
    return list(zip(found["input_ids"], found["token_type_ids"], found["offset_mapping"], sequences, strict=True))


def listed(row):
    return (
        row.ids.tolist(),
        row.type_ids.tolist(),
        [tuple(pair) for pair in row.offsets.tolist()],
        row.sequence.tolist(),
    )


def prepared(kind, lines):
    return [unicodedata.normalize("NFKC", line).strip() for line in lines] if kind == "deberta" else lines


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_transformers(both, kind, lines):
    ours, theirs = both(kind)
    assert isinstance(ours, PretrainedTokenizer) and isinstance(theirs, PreTrainedTokenizerBase)
    assert ours._tokenizer is not theirs.backend_tokenizer
    texts = prepared(kind, lines)
    assert len(texts) == 10_000
    assert sum(any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in texts) > 2000
    assert sum(any("\u00c0" <= letter <= "\u017f" for letter in text) for text in texts) > 10  # accents
    rows = ours.rows(texts)
    wrong = [index for index, (row, other) in enumerate(zip(rows, expected(theirs, kind, texts), strict=True))
             if listed(row) != other]  # fmt: skip
    assert not wrong, (len(wrong), texts[wrong[0]])
    row = rows[0]
    assert row.ids.dtype == row.type_ids.dtype == row.offsets.dtype == np.int32 and row.sequence.dtype == np.int8
    if ours.unk_id is not None and kind not in ("roberta", "roberta-space", "gpt2", "modernbert"):
        assert sum(ours.unk_id in row.ids for row in rows) > 10
    for text, ids, row in zip(texts[:500], ours.encode(texts[:500]), rows, strict=False):
        assert ids.dtype == np.int32 and ids.tolist() == row.ids[row.sequence == 0].tolist(), text
        assert ours.with_specials(ids).tolist() == row.ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_those_of_transformers(both, kind):
    ours, theirs = both(kind)
    assert ours.vocab_size == len(theirs)
    for role in ("unk", "cls", "sep", "mask"):
        assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id"), role
    assert ours.pad_id == (theirs.pad_token_id if kind != "gpt2" else theirs.eos_token_id)
    assert (ours.mask_id is None) == (kind == "gpt2")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("truncation", ["longest_first", "only_first", "only_second"])
def test_pairs_and_truncation_are_those_of_transformers(both, kind, truncation, lines):
    ours, theirs = both(kind)
    lines = prepared(kind, lines)
    specials = theirs.num_special_tokens_to_add(pair=True)
    first, second = lines[:800], lines[800:1600]
    lengths = np.array([[len(ids) for ids in ours.encode(texts)] for texts in (first, second)])
    kept = {"only_first": 1, "only_second": 0}.get(truncation)
    fits = np.ones(800, bool) if kept is None else lengths[kept] < LENGTH - specials  # the other text stays whole
    chosen = np.flatnonzero(fits)[:300]
    assert len(chosen) > 40 and sum(lengths.sum(0)[chosen] > LENGTH - specials) > 30  # many are really cut
    first, second = ([texts[index] for index in chosen] for texts in (first, second))
    rows = ours.rows(first, second, LENGTH, truncation)
    assert max(map(len, rows)) == LENGTH
    others = expected(theirs, kind, first, second, truncation=truncation, max_length=LENGTH)
    assert [listed(row) for row in rows] == others
    assert max(row.type_ids.max() for row in rows) == (kind in TYPED)
    whole = ours.rows(first, second)
    assert [listed(row) for row in whole] == expected(theirs, kind, first, second)
    texts = {0: first, 1: second}
    for number, row in enumerate(whole[:50]):
        for which in (0, 1):
            ends = row.offsets[row.sequence == which]
            assert len(ends) and ends.max() <= len(texts[which][number])


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "xlm-roberta"])
def test_single_texts_are_cut_as_transformers_cuts_them(both, kind, lines):
    ours, theirs = both(kind)
    for truncation in ("longest_first", "only_first"):
        rows = ours.rows(lines[:300], max_length=LENGTH, truncation=truncation)
        assert [listed(row) for row in rows] == expected(
            theirs, kind, lines[:300], truncation=truncation, max_length=LENGTH
        )


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_point_at_what_was_cut(both, kind, lines):
    ours, _ = both(kind)
    compared = 0
    for text, row in zip(lines[:250], ours.rows(lines[:250]), strict=True):
        for token, (start, stop) in zip(row.ids, row.offsets, strict=True):
            piece = ours.decode([token]).replace("##", "").strip()
            surface = plain(text[start:stop])
            assert start <= stop <= len(text)
            if token != ours.unk_id and plain(piece) and "\ufffd" not in piece:
                assert plain(piece) == surface, (text, piece, text[start:stop])
                compared += 1
    assert compared > 2500


def plain(text: str) -> str:
    """Returns a text without case, accents and forms of width and of quotes."""
    decomposed = unicodedata.normalize("NFKD", text.strip().translate({ord("'"): '"', ord("`"): '"'}))
    return "".join(letter for letter in decomposed if unicodedata.category(letter) not in ("Mn", "Cf", "Cc")).lower()


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_makes_a_special_token(both, kind):
    ours, theirs = both(kind)
    names = [token for token in theirs.all_special_tokens if token != theirs.unk_token or kind != "gpt2"]
    texts = [f"a {name} b{name}{name}" for name in [*names, "[CLS]", "<s>", "</s>", "[MASK]", "<mask>"]]
    special = set(theirs.all_special_ids) - {ours.unk_id}
    # The same names are special tokens to transformers unless it is told otherwise.
    assert not special or any(special & set(theirs(text, add_special_tokens=False)["input_ids"]) for text in texts)
    for text, ids in zip(texts, ours.encode(texts), strict=True):
        assert len(ids) and not special & set(ids.tolist()), text
    if kind not in ("bert", "electra", "distilbert", "minilm", "albert", "deberta", "xlm-roberta"):  # no unknowns
        assert ours.decode(ours.encode(texts)[0]).strip() == texts[0]


@pytest.mark.parametrize("kind", KINDS)
def test_decode_leaves_special_tokens_out(both, kind, lines):
    ours, theirs = both(kind)
    for ids in ours.encode(lines[:100]):
        text = ours.decode(ours.with_specials(ids))
        assert text == ours.decode(ids) == theirs.decode(ids.tolist(), clean_up_tokenization_spaces=False)
    assert ours.decode([]) == ""
    if kind == "gpt2":
        assert ours.decode([*ours.encode(["a b"])[0], theirs.eos_token_id]) == "a b"


def test_a_foreign_tokenizer_model_beside_a_vocabulary_is_not_taken_for_ours(kind_folder, tmp_path):
    shutil.copytree(kind_folder("bert"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.model").write_bytes(b"of another program")
    assert isinstance(tokenizers.load(tmp_path), PretrainedTokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_is_loaded_by_both(both, kind, lines, tmp_path, monkeymodule):
    ours, theirs = both(kind)
    ours.save(tmp_path)
    ours.save(tmp_path)  # the same again is no harm
    again = tokenizers.load(tmp_path)
    assert again.fingerprint == ours.fingerprint
    texts = lines[:200]
    ids = [row.ids.tolist() for row in ours.rows(texts)]
    assert [row.ids.tolist() for row in again.rows(texts)] == ids
    other = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert type(other) is type(theirs) and other is not theirs
    assert other(texts[0])["input_ids"] == theirs(texts[0])["input_ids"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert", "deberta", "xlm-roberta", "gpt2"])
def test_what_transformers_saves_is_read_the_same(both, kind, lines, tmp_path):
    """transformers 5 writes a tokenizer.json of its own."""
    _, theirs = both(kind)
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    ours, texts = tokenizers.load(tmp_path), lines[:300]
    assert [listed(row) for row in ours.rows(texts)] == expected(theirs, "", texts)
    assert (ours.cls_id, ours.mask_id, ours.vocab_size) == (theirs.cls_token_id, theirs.mask_token_id, len(theirs))


def test_fingerprints_tell_tokenizers_apart(both):
    prints = [both(kind)[0].fingerprint for kind in KINDS]
    assert len(set(prints)) == len(KINDS)


def test_a_changed_truncated_or_lost_file_is_noticed(both, tmp_path):
    both("roberta")[0].save(tmp_path)
    merges = tmp_path / "merges.txt"
    whole = merges.read_bytes()
    merges.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"merges\.txt: is damaged, its sha256 is not that of tokenizer\.sha256"):
        tokenizers.load(tmp_path)
    merges.unlink()
    with pytest.raises(UserError, match=r"merges\.txt: is missing, tokenizer\.sha256 names it"):
        tokenizers.load(tmp_path)
    merges.write_bytes(whole)
    assert tokenizers.load(tmp_path).fingerprint == both("roberta")[0].fingerprint
    (tmp_path / "added_tokens.json").write_text("{}")
    with pytest.raises(UserError, match=r"added_tokens\.json: tokenizer\.sha256 does not name it; remove one"):
        tokenizers.load(tmp_path)


def test_another_tokenizer_is_not_overwritten(both, tmp_path):
    both("bert")[0].save(tmp_path)
    for kind in ("electra", "roberta"):
        with pytest.raises(UserError, match=r"is of another tokenizer, which is not overwritten"):
            both(kind)[0].save(tmp_path)
    assert tokenizers.load(tmp_path).fingerprint == both("bert")[0].fingerprint


def test_added_tokens_keep_their_ids(kind_folder, tmp_path, both):
    for kind in ("bert", "xlm-roberta"):
        folder = tmp_path / kind
        shutil.copytree(kind_folder(kind), folder)
        size = both(kind)[0].vocab_size
        (folder / "added_tokens.json").write_text(json.dumps({"zyzzyva": size, "qwertz": size + 1}))
        ours = tokenizers.load(folder)
        assert ours.vocab_size == size + 2
        ids = ours.encode(["a zyzzyva and qwertz"])[0].tolist()
        assert size in ids and size + 1 in ids
        (folder / "added_tokens.json").write_text(json.dumps({"zyzzyva": size + 7}))
        with pytest.raises(UserError, match=f"the added token 'zyzzyva' cannot have the id {size + 7}"):
            tokenizers.load(folder)


def test_other_names_of_special_tokens(kind_folder, tmp_path, lines):
    vocabulary = (kind_folder("bert") / "vocab.txt").read_text().replace("[SEP]", "<end>")
    (tmp_path / "vocab.txt").write_text(vocabulary)
    with pytest.raises(UserError, match=r"vocab\.txt: .*it lacks the special token '\[SEP\]'"):
        tokenizers.load(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"sep_token": {"content": "<end>"}}))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    ours = tokenizers.load(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert ours.sep_id == theirs.sep_token_id == 3
    assert [row.ids.tolist() for row in ours.rows(lines[:100])] == theirs(lines[:100])["input_ids"]


def test_the_config_decides_about_case_as_in_transformers(kind_folder, tmp_path, lines):
    shutil.copytree(kind_folder("minilm"), tmp_path, dirs_exist_ok=True)
    options = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert options["do_lower_case"] is True
    lower = tokenizers.load(tmp_path).rows(lines[:300])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**options, "do_lower_case": False}))
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    cased = [row.ids.tolist() for row in tokenizers.load(tmp_path).rows(lines[:300])]
    assert cased == theirs(lines[:300], padding=False)["input_ids"]
    assert cased != [row.ids.tolist() for row in lower]


def test_rows_that_cannot_fit(both):
    ours, _ = both("bert")
    with pytest.raises(UserError, match=r"texts\[1\]: 2 tokens too long for max_length, and truncation='none'"):
        ours.rows(["a", "a a a a a"], max_length=5, truncation="none")
    with pytest.raises(UserError, match=r"texts\[0\]: .* truncation='only_second' cuts a text that is not there"):
        ours.rows(["a a a a"], max_length=4, truncation="only_second")
    with pytest.raises(UserError, match=r"texts\[0\]: 5 tokens too long, .*'only_first' cuts a text that has 1 tokens"):
        ours.rows(["a"], ["a a a a a"], max_length=4, truncation="only_first")
    with pytest.raises(UserError, match=r"max_length=2: the special tokens alone are 3"):
        ours.rows(["a"], ["a"], max_length=2)
    with pytest.raises(UserError, match=r"truncation='left': must be longest_first, only_first"):
        ours.rows(["a a a a"], max_length=3, truncation="left")  # type: ignore
    with pytest.raises(ValueError, match="1 texts and 2 second texts"):
        ours.rows(["a"], ["a", "a"])
    assert ours.rows([]) == [] and ours.encode([]) == []
    assert [len(row) for row in ours.rows(["", " "])] == [2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_one_message(kind_folder, kind, tmp_path):
    """Every vocabulary file, cut in the middle or replaced: an error that names it, or a tokenizer that still works."""
    names = [path.name for path in kind_folder(kind).iterdir() if path.name in sum(pretrained.VOCABULARIES, ())]
    assert names
    for name in names:
        if kind == "minilm" and name == "vocab.txt":
            continue  # beside a tokenizer.json it is not read
        whole = (kind_folder(kind) / name).read_bytes()
        damaged = {"empty": b"", "binary": bytes(range(256)) * 4, "list": b"[1, 2]"}
        if not name.endswith(".txt"):
            damaged["half"] = whole[: len(whole) // 2]
        for how, data in damaged.items():
            if name == "merges.txt" and how == "empty":
                continue  # an alphabet alone
            folder = tmp_path / name / how
            shutil.copytree(kind_folder(kind), folder)
            (folder / name).write_bytes(data)
            with pytest.raises(UserError) as caught:
                tokenizers.load(folder)
            assert str(caught.value).startswith(str(folder)) and name in str(caught.value), how
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_damaged_character_map_is_an_error_and_no_panic(kind_folder, tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString((kind_folder("albert") / "spiece.model").read_bytes())
    assert model.normalizer_spec.precompiled_charsmap
    model.normalizer_spec.precompiled_charsmap = b"\x04\0\0\0abcdefgh"
    (tmp_path / "spiece.model").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"spiece\.model: is damaged or no tokenizer's file"):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds no tokenizer; it must have tokenizer\.model and .* one of tokenizer\.json, vocab\.txt, vocab"),
        ({"vocab.json": "{}"}, r"vocab\.json and merges\.txt belong together"),
        ({"vocab.txt": "a\n", "config.json": "{"}, r"config\.json: is no JSON"),
        ({"vocab.txt": "a\n", "config.json": '{"model_type": "mpnet"}'}, r"vocab\.txt: is of a mpnet model"),
        ({"vocab.txt": "a\n", "tokenizer_config.json": '{"tokenizer_class": "BertJapaneseTokenizer"}'}, "BertJapanese"),
        ({"spiece.model": "a", "config.json": '{"model_type": "t5"}'}, r"spiece\.model: is of a t5 model"),
        ({"vocab.txt": "a\n", "tokenizer_config.json": "[]"}, r"tokenizer_config\.json: must be a JSON object"),
        ({"vocab.txt": "[UNK]\n[CLS]\n[SEP]\n", "tokenizer_config.json": '{"do_lower_case": "no"}'},
         r"tokenizer_config\.json: do_lower_case is 'no'; must be true or false"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json: is damaged or no tokenizer's file"),
    ],
)  # fmt: skip
def test_folders_that_hold_no_tokenizer(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert", "xlm-roberta"])
def test_a_tokenizer_json_without_a_post_processor_gets_that_of_its_family(both, kind, lines, tmp_path):
    _, theirs = both(kind)
    made = library.Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    made.post_processor = None
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"] is None
    rows = tokenizers.load(tmp_path).rows(lines[:100], lines[100:200])
    other = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids, types = (list(values) for values in zip(*(listed(row)[:2] for row in rows), strict=True))
    found = other(lines[:100], lines[100:200], return_token_type_ids=True)
    assert (ids, types) == (found["input_ids"], found["token_type_ids"])


def test_a_post_processor_that_repeats_a_text_is_refused(kind_folder, tmp_path):
    made = library.Tokenizer.from_file(str(kind_folder("modernbert") / "tokenizer.json"))
    made.post_processor = library.processors.TemplateProcessing(single="$A $A", pair="$B $A", special_tokens=[])
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="does not put each text once into a row"):
        tokenizers.load(tmp_path)


def test_a_path_may_be_a_string(kind_folder):
    assert tokenizers.load(str(kind_folder("bert"))).fingerprint
    assert isinstance(kind_folder("bert"), Path)
