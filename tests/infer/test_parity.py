"""Entities, masks and embeddings against `transformers` with PyTorch; the first token of a word decides about it."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_jax import infer
from lepton_jax.config import InferConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SYLLABLES = ["ka", "lo", "mer", "tin", "ba", "su"]
TEXTS = [
    "",
    "Merba (Kalo) met Su's friend at 10:30, in Tin-Ba.",
    "  two  spaces\tand a tab ",
    "caf\u00e9 in z\u00fcrich",
]
TEXTS += ["\u5728\u5317\u4eac and merlo\uff0c ok"]


def make_theirs(folder: Path, name: str, **settings: Any) -> tuple[Any, Any]:
    """Returns (a random model of a class of `transformers`, its tokenizer), which lie in a folder."""
    letters = [*string.digits, *string.punctuation, *string.ascii_lowercase, "\u5728", "\u5317", "\uff0c"]
    suffixes = [f"##{piece}" for piece in [*string.ascii_lowercase, *SYLLABLES]]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *suffixes, *SYLLABLES]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.5, **SIZES, **settings
    )
    theirs = getattr(transformers, name)(config).eval()
    theirs.save_pretrained(folder)
    return theirs, transformers.AutoTokenizer.from_pretrained(folder)


def make_texts() -> list[str]:
    draw = random.Random(0)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(30)]
    return [*TEXTS, *(" ".join(draw.choices([*words, ",", "."], k=draw.randint(3, 14))) for _ in range(30))]


@pytest.mark.parametrize("labels", [("O", "B-LOC", "I-LOC", "B-PER", "I-PER"), ("LABEL_0", "O", "NAME")])
def test_entities_are_those_of_the_pipeline(tmp_path, labels):
    names, numbers = dict(enumerate(labels)), {label: number for number, label in enumerate(labels)}
    theirs, tokenizer = make_theirs(tmp_path, "BertForTokenClassification", id2label=names, label2id=numbers)
    with torch.no_grad():
        theirs.classifier.weight *= 2
    theirs.save_pretrained(tmp_path)
    pipeline = transformers.pipeline(
        "token-classification", model=theirs, tokenizer=tokenizer, aggregation_strategy="first"
    )
    predictor = infer.load(tmp_path, config=InferConfig((16, 32), (32,), 1))
    texts = make_texts()
    assert max(map(len, predictor.tokenizer.rows(texts))) > 16
    found, scores = {"ours": [], "theirs": []}, {"ours": [], "theirs": []}
    for text, one in zip(texts, predictor(texts), strict=True):
        for name, entities in (("ours", one["entities"]), ("theirs", pipeline(text) if text else [])):
            key = "label" if name == "ours" else "entity_group"
            found[name].append([(each["start"], each["end"], each[key]) for each in entities])
            scores[name] += [float(each["score"]) for each in entities]
    assert found["ours"] == found["theirs"]
    np.testing.assert_allclose(scores["ours"], scores["theirs"], atol=2e-5)
    spans = [
        (text[start:end], kind) for text, own in zip(texts, found["ours"], strict=True) for start, end, kind in own
    ]
    assert {kind for _, kind in spans} == ({"LOC", "PER"} if "B-LOC" in labels else {"LABEL_0", "NAME"})
    assert sum(" " in covered for covered, _ in spans) > 5, "spans of several words"
    assert len({round(score, 3) for score in scores["ours"]}) > 20 and min(scores["ours"]) < 0.6


def test_masks_are_filled_as_by_the_pipeline(tmp_path):
    theirs, tokenizer = make_theirs(tmp_path, "BertForMaskedLM")
    pipeline = transformers.pipeline("fill-mask", model=theirs, tokenizer=tokenizer, top_k=12)
    predictor = infer.load(tmp_path, config=InferConfig((16, 32), (32,), 1), top=6)
    texts = ["ka [MASK] lo", "[MASK]", "mer,[MASK] tin [MASK].", "  su [MASK]ba"]
    for text, one in zip(texts, predictor(texts), strict=True):
        wanted = pipeline(text)
        wanted = wanted if text.count("[MASK]") > 1 else [wanted]
        assert len(wanted) == len(one["masks"]) == text.count("[MASK]")
        for mask, rows in zip(one["masks"], wanted, strict=True):
            rows = [row for row in rows if row["token"] not in tokenizer.all_special_ids][:6]  # which fill nothing
            names, wanted_names = ([each[key].removeprefix("##") for each in found]
                                   for key, found in (("token", mask["tokens"]), ("token_str", rows)))  # fmt: skip
            assert names == wanted_names and len(names) == 6
            np.testing.assert_allclose(
                [each["score"] for each in mask["tokens"]], [row["score"] for row in rows], atol=2e-5
            )


def test_embeddings_are_the_mean_of_the_hidden_states(tmp_path):
    theirs, tokenizer = make_theirs(tmp_path, "BertModel")
    texts = [text for text in make_texts() if text][:12]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = theirs(**batch).last_hidden_state, batch["attention_mask"][:, :, None]
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    predictor = infer.load(tmp_path, config=InferConfig((16, 64), (32,), 1))
    np.testing.assert_allclose(predictor.scores(texts), mean.numpy(), atol=2e-5)
