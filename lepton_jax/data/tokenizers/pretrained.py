"""Tokenizers of published checkpoints, read from the files that transformers reads."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from lepton_jax.core.errors import UserError
from lepton_jax.data.cache import replacing
from lepton_jax.data.tokenizers import convert, words
from lepton_jax.data.tokenizers.layout import Cut, Layout, Slot
from lepton_jax.data.tokenizers.protocol import Encoded, Truncation
from lepton_jax.data.tokenizers.sentence_piece import HASH_FILE, MODEL_FILE

# The files that make a tokenizer, best first: the first that are there decide.
VOCABULARIES = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("spm.model",),
    ("sentencepiece.bpe.model",),
)
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_FILES = (*chain.from_iterable(VOCABULARIES), *_SETTINGS)

# Whose vocabularies those files are. A folder that says it is of another family is refused, not misread.
_FAMILIES = {
    "vocab.txt": ("bert", "distilbert", "electra", "albert"),
    "vocab.json": ("roberta", "gpt2"),
    "spiece.model": ("albert",),
    "spm.model": ("deberta-v2",),
    "sentencepiece.bpe.model": ("xlm-roberta",),
}
_CLASSES = {
    "BertTokenizer": "bert",
    "DistilBertTokenizer": "distilbert",
    "ElectraTokenizer": "electra",
    "AlbertTokenizer": "albert",
    "RobertaTokenizer": "roberta",
    "GPT2Tokenizer": "gpt2",
    "DebertaV2Tokenizer": "deberta-v2",
    "XLMRobertaTokenizer": "xlm-roberta",
}
_ANY_CLASS = ("TokenizersBackend", "PreTrainedTokenizer")  # say nothing of the family

# How the special tokens are called where no file says it.
_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>", "<|endoftext|>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "eos": ("</s>", "<|endoftext|>"),
}


class PretrainedTokenizer:
    """The tokenizer of a checkpoint of BERT, DistilBERT, ELECTRA, ALBERT, RoBERTa, XLM-R, DeBERTa-v2/v3, ModernBERT
    or GPT-2 as a `Tokenizer`.

    Its ids are those of transformers' `AutoTokenizer(..., split_special_tokens=True)`: the text "[MASK]" is text.
    Truncation and padding that `tokenizer.json` asks for are left to the caller.
    """

    def __init__(self, files: Mapping[str, bytes], family: str | None = None, where: str = "tokenizer"):
        """Builds the tokenizer of some files.

        Args:
          files: name -> content, of the names that transformers gives them.
          family: the `model_type` of the checkpoint's `config.json`, if known.
          where: the folder, for messages.

        Raises:
          UserError: the files are damaged, or of a tokenizer that is not supported.
        """
        self._files, self._where, self._arguments = dict(files), where, (dict(files), family, where)
        options = self._json("tokenizer_config.json")
        self._family = _family(options, family)
        names = {**_names(self._json("special_tokens_map.json")), **_names(options)}
        settings = convert.Settings(where, options, names)
        self._tokenizer = self._build(settings)
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values())
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token.content: index for index, token in added.items() if token.special}
        roles = {role: self._role(names.get(role), special, _NAMES[role]) for role in _NAMES}
        self.unk_id, self.cls_id, self.sep_id, self.mask_id = (roles[role] for role in ("unk", "cls", "sep", "mask"))
        self.pad_id = next((roles[role] for role in ("pad", "eos") if roles[role] is not None), None) or 0
        # GPT-2's unknown token is its end of text, which is no part of a text.
        kept = {self.unk_id} - {roles["eos"]}
        self._special = np.array(sorted(set(special.values()) - kept), np.int32)
        digest = hashlib.sha256(repr(self._family).encode())
        for name in sorted(self._files):
            digest.update(f"\n{name} {len(self._files[name])}\n".encode() + self._files[name])
        self.fingerprint = digest.hexdigest()

    @property
    def word_starts(self) -> np.ndarray:
        """Returns bool [vocab_size]: whether a token begins a word, see `words`."""
        pieces = [self._tokenizer.id_to_token(index) or "" for index in range(self.vocab_size)]
        kind = type(self._tokenizer.model).__name__
        spaced = kind == "Unigram" or (kind == "BPE" and any(piece.startswith("▁") for piece in pieces))
        return words.starts(pieces, "##" if kind == "WordPiece" else "▁" if spaced else "Ġ")

    def __reduce__(self) -> tuple[Any, ...]:  # for processes that tokenise; the library's own way forgets settings
        return PretrainedTokenizer, self._arguments

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns int32 [n] token ids of each text, without special tokens."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in found]

    def rows(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
    ) -> list[Encoded]:
        """Returns one row a text or pair, with the special tokens of the checkpoint's family; see `Tokenizer.rows`."""
        first, second = self._cut(texts), None if pairs is None else self._cut(pairs)
        return self._layout.rows(first, second, max_length, truncation)

    def with_specials(self, ids: np.ndarray) -> np.ndarray:
        """Returns int32 [m]: the ids of one document with the special tokens around it."""
        return self._layout.with_specials(ids)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of token ids; special tokens other than the unknown one have none."""
        array = np.asarray(ids, np.int64).reshape(-1)
        return self._tokenizer.decode(array[~np.isin(array, self._special)].tolist(), skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Writes the files as they were read, and their hashes.

        Raises:
          UserError: the folder holds another tokenizer.
        """
        folder = Path(folder)
        for name in (MODEL_FILE, *_FILES):
            path = folder / name
            if path.exists() and path.read_bytes() != self._files.get(name):
                raise UserError(f"{path}: is of another tokenizer, which is not overwritten; choose another folder")
        hashes = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(self._files.items())]
        with replacing(folder / HASH_FILE) as temporary:
            temporary.write_text("".join(hashes))
        for name, data in self._files.items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(data)
        config = folder / "config.json"
        told = _family(self._json("tokenizer_config.json"), None)
        if self._family != told and not config.exists():  # else nothing in the folder would say it
            with replacing(config) as temporary:
                temporary.write_text(json.dumps({"model_type": self._family}) + "\n")

    def _build(self, settings: convert.Settings) -> tokenizers.Tokenizer:
        found = [names for names in VOCABULARIES if all(name in self._files for name in names)]
        if not found:
            raise UserError(f"{self._where}: vocab.json and merges.txt belong together, and one is not there")
        name = found[0][0]
        if name in _FAMILIES and self._family not in (None, *_FAMILIES[name]):
            raise UserError(f"{self._where}/{name}: is of a {self._family} model; this file is read for "
                            f"{', '.join(_FAMILIES[name])}, others need a tokenizer.json")  # fmt: skip
        with _refusing(f"{self._where}/{' + '.join(found[0])}"):
            data = self._files[name]
            if name == "tokenizer.json":
                tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
                self._complete(tokenizer, settings)
                _agree(tokenizer, settings)
            elif name == "vocab.json":
                tokenizer = convert.byte_level(data, self._files["merges.txt"], settings, self._family)
            else:
                tokenizer = _CONVERT[name](data, settings)
            if name != "tokenizer.json":
                self._add(tokenizer, settings)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            self._layout = _layout(tokenizer)
            # From here on a special token's name in a text is text.
            tokenizer.encode_special_tokens = True
            convert.guard(tokenizer)
            tokenizer.encode_batch(["a \u4e66 \uff21\u2460 \U0001f600"])  # a damaged character map fails only here
        return tokenizer

    def _complete(self, tokenizer: tokenizers.Tokenizer, settings: convert.Settings) -> None:
        """Gives a tokenizer.json without a post-processor that of its family, as transformers does."""
        if tokenizer.post_processor is not None or self._family not in _CLASSES.values() or self._family == "gpt2":
            return
        twice = self._family in ("roberta", "xlm-roberta")
        cls, sep = (settings.names.get(role, _NAMES[role][twice]) for role in ("cls", "sep"))
        if tokenizer.token_to_id(cls) is not None and tokenizer.token_to_id(sep) is not None:
            tokenizer.post_processor = convert.template(tokenizer, cls, sep, pair_types=not twice, twice=twice)

    def _add(self, tokenizer: tokenizers.Tokenizer, settings: convert.Settings) -> None:
        """Adds the tokens that a user gave the checkpoint after its training, under their ids."""
        wanted = {int(index): token for token, index in self._json("added_tokens.json").items()}
        wanted |= {int(index): token for index, token in (settings.options.get("added_tokens_decoder") or {}).items()}
        for index, token in sorted(wanted.items()):
            fields = dict(token) if isinstance(token, dict) else {"content": token}
            fields.pop("__type", None)
            special = fields.get("special", fields["content"] in settings.names.values())
            add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
            add([tokenizers.AddedToken(**fields)])
            if tokenizer.token_to_id(fields["content"]) != index:
                raise ValueError(f"the added token {fields['content']!r} cannot have the id {index}")

    def _role(self, named: str | None, special: Mapping[str, int], defaults: Sequence[str]) -> int | None:
        if named is not None:
            return self._tokenizer.token_to_id(named)
        return next((special[token] for token in defaults if token in special), None)

    def _cut(self, texts: Sequence[str]) -> list[Cut]:
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            (
                np.array(one.ids, np.int32),
                np.fromiter(chain.from_iterable(one.offsets), np.int32, 2 * len(one)).reshape(-1, 2),
            )
            for one in found
        ]

    def _json(self, name: str) -> dict[str, Any]:
        if name not in self._files:
            return {}
        return _object(self._files[name], f"{self._where}/{name}")


_CONVERT = {
    "vocab.txt": convert.word_piece,
    "spiece.model": convert.albert,
    "spm.model": convert.deberta,
    "sentencepiece.bpe.model": convert.xlm_roberta,
}


def read(folder: Path | str) -> PretrainedTokenizer:
    """Returns the tokenizer of a Hugging Face folder, or of one that `PretrainedTokenizer.save` wrote.

    Raises:
      UserError: a file is missing, damaged, or not the one that was saved.
    """
    folder = Path(folder)
    files = {name: _bytes(folder / name) for name in _FILES if (folder / name).exists()}
    if (folder / HASH_FILE).exists():
        _check(folder, files, _bytes(folder / HASH_FILE).decode("utf-8", "replace"))
    config = folder / "config.json"
    family = _object(_bytes(config), str(config)).get("model_type") if config.exists() else None
    return PretrainedTokenizer(files, family if isinstance(family, str) else None, str(folder))


def _check(folder: Path, files: Mapping[str, bytes], hashes: str) -> None:
    """Compares files with the hashes that `PretrainedTokenizer.save` wrote of them."""
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in hashes.splitlines())}
    for name in sorted({*expected, *files}):
        if name not in files:
            raise UserError(f"{folder / name}: is missing, {HASH_FILE} names it; restore it from a copy")
        if name not in expected:
            raise UserError(f"{folder / name}: {HASH_FILE} does not name it; remove one of the two")
        if hashlib.sha256(files[name]).hexdigest() != expected[name]:
            raise UserError(
                f"{folder / name}: is damaged, its sha256 is not that of {HASH_FILE}; restore it from a copy"
            )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _object(data: bytes, path: str) -> dict[str, Any]:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({error}); restore it from a copy") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must be a JSON object, not {type(tree).__name__}")
    return tree


def _family(options: Mapping[str, Any], model_type: str | None) -> str | None:
    """Returns the family that a folder says it is of; the tokenizer's own class counts more than the model's type."""
    name = str(options.get("tokenizer_class") or "").removesuffix("Fast")
    if name in _CLASSES:
        return _CLASSES[name]
    return model_type if not name or name in _ANY_CLASS else name


def _names(tree: Mapping[str, Any]) -> dict[str, str]:
    """Returns role -> token of a file that names tokens, as a string or as an object with its content."""
    found = {}
    for role in _NAMES:
        token = tree.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[role] = token
    return found


def _agree(tokenizer: tokenizers.Tokenizer, settings: convert.Settings) -> None:
    """Lets tokenizer_config.json decide about case, accents and Chinese where it says more than tokenizer.json."""
    normal = tokenizer.normalizer
    if not isinstance(normal, tokenizers.normalizers.BertNormalizer):
        return
    chinese = settings.option("tokenize_chinese_chars", normal.handle_chinese_chars)
    accents = settings.options.get("strip_accents", normal.strip_accents)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=normal.clean_text,
        handle_chinese_chars=chinese,
        strip_accents=accents,
        lowercase=settings.option("do_lower_case", normal.lowercase),
    )


def _layout(tokenizer: tokenizers.Tokenizer) -> Layout:
    """Learns where the post-processor puts special tokens, from what it makes of two short texts."""
    return Layout(_slots(tokenizer.encode("a"), 1), _slots(tokenizer.encode("a", "a"), 2))


def _slots(row: tokenizers.Encoding, texts: int) -> tuple[Slot, ...]:
    sequences = [-1 if special or number is None else number
                 for number, special in zip(row.sequence_ids, row.special_tokens_mask, strict=True)]  # fmt: skip
    slots, start = [], 0
    for (sequence, type_id), run in itertools.groupby(zip(sequences, row.type_ids, strict=True)):
        stop = start + len(list(run))
        slots.append(Slot(sequence, type_id, () if sequence >= 0 else tuple(row.ids[start:stop])))
        start = stop
    if [slot.sequence for slot in slots if slot.sequence >= 0] != list(range(texts)):
        raise ValueError("its post-processor does not put each text once into a row")
    return tuple(slots)


@contextlib.contextmanager
def _refusing(path: str) -> Iterator[None]:
    """Turns whatever reading a damaged file raises into one message."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # A panic inside the tokenizers library is no Exception; an interrupt is neither, and goes on.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is damaged or no tokenizer's file ({reason}); restore it from a copy") from None
