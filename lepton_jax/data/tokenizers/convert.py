"""The vocabularies of published checkpoints as `tokenizers.Tokenizer`, one function a file format.

Each takes the bytes of the files and the settings of `tokenizer_config.json`. Nothing of a file is executed. The
special tokens are part of the result, and its post-processor says how they stand around texts.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as schema
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lepton_jax.core.errors import UserError

_SPACE = "\u2581"  # what SentencePiece writes for a space
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a folder says of its tokenizer besides the vocabulary."""

    where: str  # the folder, for messages
    options: Mapping[str, Any]  # of tokenizer_config.json
    names: Mapping[str, str]  # role ("pad", "unk", "cls", "sep", "mask", "eos") -> token, where a file names one

    def option(self, name: str, default: bool) -> bool:
        """Returns a switch; null, as transformers writes what was not set, is the default."""
        value = self.options.get(name)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{self.where}/tokenizer_config.json: {name} is {value!r}; must be true or false")
        return default if value is None else value

    def named(self, **defaults: str) -> dict[str, str]:
        """Returns the token of each role, the default where no file names another."""
        return {role: self.names.get(role, token) for role, token in defaults.items()}


def word_piece(vocabulary: bytes, settings: Settings) -> Tokenizer:
    """Returns BERT's WordPiece (Devlin et al. 2018, arXiv:1810.04805) of a `vocab.txt`, one token a line."""
    lines = vocabulary.decode("utf-8").split("\n")
    ids = {token.removesuffix("\r"): index for index, token in enumerate(lines[:-1] if not lines[-1] else lines)}
    names = settings.named(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    _require(ids, (names["unk"], names["cls"], names["sep"]))
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=names["unk"]))
    accents = settings.options.get("strip_accents")
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.option("tokenize_chinese_chars", True),
        strip_accents=None if accents is None else settings.option("strip_accents", False),  # null: as lowercase does
        lowercase=settings.option("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return _finished(tokenizer, names, pair_types=True)


def byte_level(vocabulary: bytes, merges: bytes, settings: Settings, family: str | None) -> Tokenizer:
    """Returns byte-level BPE (Radford et al. 2019) of `vocab.json` and `merges.txt`: RoBERTa's or GPT-2's."""
    ids = json.loads(vocabulary)
    lines = (line for line in merges.decode("utf-8").split("\n") if line.strip() and not line.startswith("#version"))
    family = family or ("roberta" if "<mask>" in ids else "gpt2")
    space = settings.option("add_prefix_space", False)
    tokenizer = Tokenizer(models.BPE(ids, [_merge(line) for line in lines], fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    if family == "gpt2":
        names = settings.named(unk="<|endoftext|>", eos="<|endoftext|>")
        names |= {role: token for role, token in settings.names.items() if role in ("pad", "mask", "cls", "sep")}
        return _finished(tokenizer, names, layout=False)
    names = settings.named(cls="<s>", pad="<pad>", sep="</s>", unk="<unk>", mask="<mask>")
    _require(ids, names.values())
    _finished(tokenizer, names, layout=False)
    sep, cls = ((names[role], ids[names[role]]) for role in ("sep", "cls"))
    tokenizer.post_processor = processors.RobertaProcessing(
        sep, cls, trim_offsets=settings.option("trim_offsets", True), add_prefix_space=space
    )
    return tokenizer


def albert(model: bytes, settings: Settings) -> Tokenizer:
    """Returns ALBERT's tokenizer (Lan et al. 2019, arXiv:1909.11942) of a `spiece.model`."""
    proto = _parse(model)
    before: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.option("keep_accents", False):
        before += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.option("do_lower_case", True):
        before.append(normalizers.Lowercase())
    names = settings.named(pad="<pad>", unk="<unk>", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = _unigram_or_bpe(proto, vocabulary, _unknown(proto), before, split=pre_tokenizers.WhitespaceSplit())
    return _finished(tokenizer, names, proto, pair_types=True)


def deberta(model: bytes, settings: Settings) -> Tokenizer:
    """Returns the tokenizer of DeBERTa-v2 and v3 (He et al. 2021, arXiv:2111.09543) of a `spm.model`."""
    proto = _parse(model)
    before = [normalizers.Lowercase()] if settings.option("do_lower_case", False) else []
    split = pre_tokenizers.Punctuation("isolated") if settings.option("split_by_punct", False) else None
    names = settings.named(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = _unigram_or_bpe(proto, vocabulary, _unknown(proto), before, split)
    return _finished(tokenizer, names, proto, pair_types=True)


def xlm_roberta(model: bytes, settings: Settings) -> Tokenizer:
    """Returns XLM-R's tokenizer (Conneau et al. 2019, arXiv:1911.02116) of a `sentencepiece.bpe.model`.

    fairseq, which trained the model, has four special tokens where SentencePiece has three, in another order, and
    the mask at the end: an id is SentencePiece's plus one.
    """
    proto = _parse(model)
    names = settings.named(cls="<s>", pad="<pad>", sep="</s>", unk="<unk>", mask="<mask>")
    vocabulary = [(token, 0.0) for role, token in names.items() if role != "mask"]
    vocabulary += [(piece.piece, piece.score) for piece in proto.pieces[3:]] + [(names["mask"], 0.0)]
    tokenizer = _unigram_or_bpe(proto, vocabulary, 3, [], split=pre_tokenizers.WhitespaceSplit())
    return _finished(tokenizer, names, proto, twice=True)


def guard(tokenizer: Tokenizer) -> None:
    """Keeps texts from making special tokens and bytes out of a Unigram vocabulary, which holds their names.

    SentencePiece itself never matches those; here a text is cut after the first character of such a name.
    """
    if not isinstance(tokenizer.model, models.Unigram):
        return
    names = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    names |= {token for token in tokenizer.get_vocab() if _BYTE.fullmatch(token)}
    long = sorted(name for name in names if len(name) > 1)
    if not long:
        return
    pattern = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in long)
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    before = tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = cut if before is None else pre_tokenizers.Sequence([before, cut])


def template(tokenizer: Tokenizer, cls: str, sep: str, pair_types: bool, twice: bool) -> Any:
    """Returns a post-processor of `cls A sep` and `cls A sep B sep`, with two `sep` in the middle where `twice`.

    With `pair_types` the second text and the `sep` after it have the token type 1.
    """
    middle, second = " ".join([f"{sep}:0"] * (1 + twice)), int(pair_types)
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {middle} $B:{second} {sep}:{second}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((cls, sep))],
    )


def _finished(
    tokenizer: Tokenizer,
    names: Mapping[str, str],
    proto: Any = None,
    *,
    pair_types: bool = False,
    twice: bool = False,
    layout: bool = True,
) -> Tokenizer:
    """Adds the special tokens, those of the vocabulary under their ids, and the post-processor."""
    pieces = [] if proto is None else proto.pieces
    defined = [piece.piece for piece in pieces if piece.type == piece.USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in defined])
    control = [piece.piece for piece in pieces if piece.type == piece.CONTROL]
    known = [token for token in control if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens(list(dict.fromkeys([*known, *names.values()])))
    if layout:
        tokenizer.post_processor = template(tokenizer, names["cls"], names["sep"], pair_types, twice)
    return tokenizer


def _parse(model: bytes) -> Any:
    proto = schema.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]
    if not proto.pieces or not proto.HasField("trainer_spec") or not proto.HasField("normalizer_spec"):
        raise ValueError("it is no whole SentencePiece model")
    return proto


def _unknown(proto: Any) -> int:
    found = [index for index, piece in enumerate(proto.pieces) if piece.type == piece.UNKNOWN]
    if not found:
        raise ValueError("it has no piece for unknown characters")
    return found[0]


def _unigram_or_bpe(
    proto: Any, vocabulary: list[tuple[str, float]], unknown: int, before: list[Any], split: Any
) -> Tokenizer:
    """Returns a SentencePiece model as a `Tokenizer`, with the normalisation that its file holds.

    Args:
      proto: the parsed file.
      vocabulary: (piece, score), in the order of the ids.
      unknown: the id of the unknown piece.
      before: normalizers that run before the file's own.
      split: what cuts a text before spaces are marked, or None.
    """
    trained, normal = proto.trainer_spec, proto.normalizer_spec
    if trained.model_type == trained.UNIGRAM:
        tokenizer = Tokenizer(models.Unigram(vocabulary, unknown, trained.byte_fallback))
    elif trained.model_type == trained.BPE:
        ids = {piece: index for index, (piece, _) in enumerate(vocabulary)}
        tokenizer = Tokenizer(models.BPE(ids, _merges(vocabulary), unk_token=vocabulary[unknown][0], fuse_unk=True,
                                         byte_fallback=trained.byte_fallback))  # fmt: skip
    else:
        raise ValueError("its SentencePiece model is neither unigram nor bpe")
    steps = list(before)
    if normal.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normal.precompiled_charsmap))
    if normal.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if normal.add_dummy_prefix else "never"
    spaces = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([step for step in (split, spaces) if step is not None])
    decode: list[Any] = [decoders.ByteFallback(), decoders.Fuse()] if trained.byte_fallback else []
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(_SPACE, prepend_scheme=scheme), *decode])
    return tokenizer


def _merges(vocabulary: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Returns the merges that SentencePiece's BPE does: of any two pieces whose concatenation is one, best first."""
    known = {piece for piece, _ in vocabulary}
    found = []
    for piece, score in vocabulary:
        for cut in range(1, len(piece)):
            if piece[:cut] in known and piece[cut:] in known:
                found.append((-score, piece[:cut], piece[cut:]))
    return [(left, right) for _, left, right in sorted(found, key=lambda merge: merge[0])]


def _merge(line: str) -> tuple[str, str]:
    left, right = line.rstrip("\r").split(" ")
    return left, right


def _require(ids: Mapping[str, int], tokens: Any) -> None:
    if missing := [token for token in tokens if token not in ids]:
        raise ValueError(f"it lacks the special token {missing[0]!r}; the special tokens' names must be in it")
