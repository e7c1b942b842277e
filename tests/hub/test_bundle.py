"""A bundle written and read again, and what a folder must be to be read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from lepton_jax import hub
from lepton_jax.compress import quantize_int8
from lepton_jax.core.errors import UserError
from lepton_jax.core.weights import Int8
from lepton_jax.data import tokenizers
from lepton_jax.data.rows import encode_examples
from lepton_jax.data.shards import encode_documents

pytestmark = pytest.mark.once

IDS = np.arange(24, dtype=np.int32).reshape(2, 12) + 5


def int8(bundle: hub.Bundle, keep_float: tuple[str, ...] = ()) -> hub.Bundle:
    card = dataclasses.replace(bundle.card, weights="int8", keep_float=keep_float)
    return dataclasses.replace(bundle, params=quantize_int8(bundle.params, keep_float), card=card)


def same(a, b) -> bool:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_the_tokenizer_of_a_checkpoint_travels_with_a_bundle(make_bundle, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "good"]))
    (tmp_path / "config.json").write_text('{"model_type": "distilbert", "dim": 7}')
    bundle = dataclasses.replace(make_bundle(), tokenizer=tokenizers.load(tmp_path))
    hub.write(tmp_path / "a", bundle)
    back = hub.load(tmp_path / "a")
    assert back.tokenizer.fingerprint == bundle.tokenizer.fingerprint != make_bundle().tokenizer.fingerprint
    assert encode_examples(back.tokenizer, ["AB good x"], 5)[0].tolist() == [2, 5, 6, 7, 3]
    assert encode_documents(back.tokenizer, ["a a a good"], 5, str(tmp_path))[1].tolist() == [2, 7, 3]
    damage(tmp_path / "a" / "tokenizer" / "vocab.txt")
    with pytest.raises(UserError, match=r"vocab\.txt: is damaged"):
        hub.load(tmp_path / "a")


@pytest.mark.parametrize("form", ["float32", "int8", "int8 but for the head"])
def test_a_written_bundle_comes_back_bit_for_bit(make_bundle, tmp_path, form):
    bundle = make_bundle()
    if form != "float32":
        bundle = int8(bundle, ("^head/",) if "head" in form else ())
    hub.write(tmp_path / "a", bundle)
    back = hub.load(tmp_path / "a")
    assert back.card == bundle.card and back.config == bundle.config
    assert back.tokenizer.fingerprint == bundle.tokenizer.fingerprint
    assert same(back.params, bundle.params)
    assert isinstance(back.params["embeddings"]["token"], Int8) == (form != "float32")
    assert isinstance(back.params["head"]["output"]["kernel"], Int8) == (form == "int8")
    out = [one.model.apply({"params": one.params}, IDS, attention_mask=np.ones_like(IDS)) for one in (bundle, back)]
    assert same(*out) and set(out[0]) == {"hidden", "logits", "pooled"}
    other = make_bundle().model.apply({"params": make_bundle().params}, IDS)
    assert same(out[0], other) == (form == "float32"), "int8 must compute something else than float32"


@pytest.mark.parametrize(
    ("head", "labels", "outputs"), [("masked_lm", (), 0), ("classification", ("a", "b"), 2), ("classification", (), 1)]
)
def test_the_card_tells_the_head_and_its_outputs(make_bundle, tmp_path, head, labels, outputs):
    bundle = make_bundle(head, labels)
    hub.write(tmp_path / "a", bundle)
    back = hub.load(str(tmp_path / "a"))
    assert back.card.labels == labels and back.card.num_outputs == outputs == back.model.num_outputs
    logits = back.model.apply({"params": back.params}, IDS)["logits"]
    assert logits.shape == ((2, 12, 448) if head == "masked_lm" else (2, outputs))


def test_a_quickstarts_folder_is_its_fine_tuned_model(quickstart):
    whole, part = hub.load(quickstart), hub.load(quickstart / "finetune")
    assert whole.card == part.card and same(whole.params, part.params)
    assert whole.card.head == "classification" and hub.load(quickstart / "pretrain").card.head == "masked_lm"
    assert same(hub.load(quickstart / "finetune" / "int8").params, quantize_int8(whole.params))


def test_the_best_checkpoint_of_a_run_is_its_model(quickstart, tmp_path):
    """The card says how the best one is told; turned round, another step is the model."""
    run = tmp_path / "run"
    shutil.copytree(quickstart / "finetune", run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["12"]
    assert same(hub.load(run).params, hub.load(quickstart / "finetune").params)
    shutil.rmtree(run / "checkpoints" / "12")
    with pytest.raises(UserError, match="the run has no finished checkpoint yet; let it train on"):
        hub.load(run)


def test_writing_over_a_bundle_is_refused(make_bundle, tmp_path):
    bundle = make_bundle()
    hub.write(tmp_path / "a", bundle)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"a/params: is there already; choose another folder"):
        hub.write(tmp_path / "a", int8(bundle))
    assert contents(tmp_path) == before


def test_writing_into_a_run_is_refused(make_bundle, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run/checkpoints: is there already; choose another folder"):
        hub.write(tmp_path / "run", make_bundle())
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("model.json", damage, r"model\.json: not valid JSON at line \d+ .*; the file is damaged"),
        ("tokenizer/tokenizer.model", damage, r"tokenizer\.model: is damaged, its sha256 is not"),
        ("tokenizer/tokenizer.model", Path.unlink, r"tokenizer: holds no tokenizer; it must have tokenizer\.model"),
        ("params/manifest.json", damage, r"params/manifest\.json: .*damaged"),
        (
            "params",
            lambda path: damage(largest(path)),
            r"params/\S+: damaged \(\d+ bytes instead of \d+\); save it again",
        ),
        ("params", shutil.rmtree, "the run has no finished checkpoint yet"),
    ],
)
def test_a_damaged_folder_is_refused_by_naming_the_file(make_bundle, tmp_path, name, harm, message):
    hub.write(tmp_path / "a", make_bundle())
    hub.load(tmp_path / "a")
    harm(tmp_path / "a" / name)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        hub.load(tmp_path / "a")
    assert "\n" not in str(caught.value) and contents(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.pop("head") and None,
        lambda card: card["model"].update(colour="red"),
        lambda card: card.update(model=3),
        lambda card: card.pop("checkpoint") and None,
    ],
)
def test_a_card_of_another_version_is_refused(make_bundle, tmp_path, change):
    hub.write(tmp_path, make_bundle())
    card = json.loads((tmp_path / "model.json").read_text())
    change(card)
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"model\.json: not the card of a model of this version \("):
        hub.load(tmp_path)


def test_parameters_of_another_architecture_are_refused(make_bundle, tmp_path):
    hub.write(tmp_path, make_bundle())
    card = json.loads((tmp_path / "model.json").read_text())
    card["model"]["intermediate_size"] = 64
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(
        UserError, match=r"feed_forward/\S+ is float32\[\S+ in the checkpoint, float32\[\S+ in the model"
    ):
        hub.load(tmp_path)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", r"no model here \(no model\.json or config\.json\); name the WORKDIR of a trained model"),
        ("nowhere", r"no such folder; a model is a folder, hf:ORG/NAME or pypi:NAME==VERSION"),
    ],
)
def test_a_folder_without_a_model_is_refused(tmp_path, folder, message):
    with pytest.raises(UserError, match=message):
        hub.load(tmp_path / folder)
    assert list(tmp_path.iterdir()) == []
