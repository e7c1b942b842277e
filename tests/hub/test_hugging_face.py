"""Folders of `transformers` without PyTorch: what is loaded, what is initialised, what is refused, and the way back."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lepton_jax import hub
from lepton_jax.compress import quantize_int8
from lepton_jax.config import ModelConfig, TaskConfig
from lepton_jax.core import sharding, trees
from lepton_jax.core.errors import UserError
from lepton_jax.hub import tensors
from lepton_jax.hub.families import FAMILIES
from lepton_jax.models.partitioning import RULES
from lepton_jax.models.transformer import Transformer, abstract_params, init_params

pytestmark = pytest.mark.once

IDS = np.arange(3, 27, dtype=np.int32).reshape(2, 12)
BERT = ModelConfig(
    vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48, max_positions=16, type_vocab_size=2,
    norm_position="post", norm_epsilon=1e-12, positions="learned", pooling="cls", dropout=0.1, initializer_range=0.2,
)  # fmt: skip


def bundle(head="masked_lm", labels=(), **changes) -> hub.Bundle:
    config = dataclasses.replace(BERT, **changes)
    language = "classification" if labels else "masked_lm"
    task = TaskConfig(name="token_classification" if head == "token_classification" else language)
    card = hub.Card(config, head, task, config.max_positions, labels)
    model = Transformer(config, head, card.num_outputs)
    return hub.Bundle(model, init_params(model, jax.random.key(0)), None, card)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "bert"
    hub.save(folder, bundle())
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "bert"))


def edit(path: Path, **changes) -> None:
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in tree.items() if value is not ...}))


def rewrite(folder: Path, change) -> None:
    """Replaces the tensors of a folder by what `change` makes of them."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def same(a, b) -> bool:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def run(loaded: hub.Bundle):
    return loaded.model.apply({"params": loaded.params}, IDS)


def test_a_model_of_ours_goes_into_a_family_that_can_express_it(folder):
    back = hub.load(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "bert" and config["architectures"] == ["BertForMaskedLM"]
    assert back.config == BERT and back.card.head == "masked_lm" and back.tokenizer is None
    assert same(back.params, bundle().params) and same(run(back), run(bundle()))
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positions": "rotary"}, "bert: positions is 'learned', not 'rotary'"),
        ({"gated": True}, "bert: gated is False, not True"),
        ({"norm_position": "pre", "positions": "learned"}, "bert: norm_position is 'post', not 'pre'"),
    ],
)
def test_a_model_that_no_family_has_is_refused(tmp_path, changes, reason):
    with pytest.raises(
        UserError, match="no family of `transformers` that this package knows has such a model"
    ) as caught:
        hub.save(tmp_path / "out", bundle(**changes))
    assert reason in str(caught.value) and all(f"{name}: " in str(caught.value) for name in FAMILIES)
    assert list(tmp_path.iterdir()) == []


def test_saving_where_something_is_changes_nothing(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"bert: is there already; choose another folder"):
        hub.save(folder, bundle(vocab_size=65))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_saving_where_nothing_can_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file/out: cannot be written \(Not a directory\); mend that, then give"):
        hub.save(tmp_path / "file" / "out", bundle())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_int8_weights_are_not_saved_for_others(tmp_path):
    made = bundle()
    card = dataclasses.replace(made.card, weights="int8")
    with pytest.raises(UserError, match="int8 weights cannot be saved for other libraries"):
        hub.save(tmp_path / "out", dataclasses.replace(made, params=quantize_int8(made.params), card=card))


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_another_type_is_read_as_float32_and_written_back(folder, tmp_path, kind):
    rewrite(folder, lambda found: {name: value.astype(kind) for name, value in found.items()})
    loaded = hub.load(folder)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded.params))
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(kind).astype(np.float32), bundle().params)
    assert same(loaded.params, rounded) and not same(loaded.params, bundle().params)
    hub.save(tmp_path / "again", loaded)
    before, after = (load_file(where / "model.safetensors") for where in (folder, tmp_path / "again"))
    assert before.keys() == after.keys() and {value.dtype for value in after.values()} == {np.dtype(kind)}
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_shards_are_one_model(folder, tmp_path):
    hub.save(str(tmp_path / "shards"), hub.load(str(folder)), shard_bytes=20_000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert same(hub.load(tmp_path / "shards").params, hub.load(folder).params)


def test_names_of_older_checkpoints_are_known_and_kept(folder, tmp_path):
    """Without the family's prefix, norms with gamma and beta, a buffer of positions, the tied matrix twice."""
    original = hub.load(folder)

    def older(found):
        renamed = {}
        for name, value in found.items():
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            renamed[name] = value
        renamed["bert.embeddings.position_ids"] = np.arange(16, dtype=np.int64)[None, :]
        renamed["cls.predictions.decoder.weight"] = found["bert.embeddings.word_embeddings.weight"]
        return renamed

    rewrite(folder, older)
    loaded = hub.load(folder)
    assert same(loaded.params, original.params) and not loaded.unexpected and not loaded.initialised
    hub.save(tmp_path / "again", loaded)
    found, before = load_file(tmp_path / "again" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert found.keys() == before.keys() and all(np.array_equal(found[name], before[name]) for name in found)


def test_an_encoder_has_no_prefix_and_a_pooler_only_if_its_weights_do(tmp_path):
    hub.save(tmp_path / "with", bundle("pooler"))
    names = load_file(tmp_path / "with" / "model.safetensors").keys()
    assert {"embeddings.word_embeddings.weight", "pooler.dense.weight"} <= names
    assert hub.load(tmp_path / "with").card.head == "pooler"
    rewrite(tmp_path / "with", lambda found: {name: v for name, v in found.items() if "pooler" not in name})
    without = hub.load(tmp_path / "with")
    assert without.card.head == "none" and "pooler" not in without.params and not without.initialised


def test_a_missing_head_is_initialised_and_said_so(folder, caplog):
    encoder = hub.load(folder)
    with caplog.at_level(logging.WARNING, logger="absl"):
        classifier = hub.load(folder, "classification", ("a", "b", "c"))
    assert classifier.initialised == ("head", "pooler")
    assert "initialised, the weights do not have them: bert.pooler.dense.weight" in caplog.text
    assert "not part of a BertForSequenceClassification, left out: cls.predictions" in caplog.text
    assert "cls.predictions.bias" in classifier.unexpected and len(classifier.unexpected) == 5
    assert same(classifier.params["layers"], encoder.params["layers"])
    assert run(classifier)["logits"].shape == (2, 3) and classifier.card.labels == ("a", "b", "c")
    other = hub.load(folder, "classification", ("a", "b", "c"), seed=1)
    assert not same(other.params["head"], classifier.params["head"])


def test_a_new_head_on_a_converted_model_is_that_of_its_family(folder, tmp_path):
    hub.write(tmp_path / "ours", hub.load(folder))
    loaded = hub.load(tmp_path / "ours", "token_classification", ("O", "B", "I"))
    assert loaded.initialised == ("head",) and run(loaded)["logits"].shape == (2, 12, 3)
    hub.save(tmp_path / "again", loaded)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"] and config["id2label"] == {
        "0": "O",
        "1": "B",
        "2": "I",
    }
    assert config["label2id"] == {"O": 0, "B": 1, "I": 2}
    back = hub.load(tmp_path / "again")
    assert back.card.labels == ("O", "B", "I") and same(back.params, loaded.params)
    with pytest.raises(UserError, match=r"head='token_classification': a new one needs labels: .*labels\)$"):
        hub.load(tmp_path / "ours", "token_classification")
    with pytest.raises(UserError, match="head='causal_lm': the family bert has none, pooler, masked_lm"):
        hub.load(tmp_path / "ours", "causal_lm")


@pytest.mark.parametrize(
    ("head", "labels", "config", "task", "outputs"),
    [
        ("classification", ("no", "yes"), {}, "classification", 2),
        ("classification", ("on",), {"problem_type": "multi_label_classification"}, "multi_label", 1),
        ("token_classification", ("O", "B-A", "I-A"), {}, "token_classification", 3),
        ("classification", ("no", "yes"), {"problem_type": "multi_label_classification"},
         "multi_label", 2),
        ("classification", ("score",), {}, "regression", 1),
    ],
)  # fmt: skip
def test_labels_and_task_come_from_the_config(tmp_path, head, labels, config, task, outputs):
    hub.save(tmp_path / "a", bundle(head, labels))
    edit(tmp_path / "a" / "config.json", **config)
    loaded = hub.load(tmp_path / "a")
    assert loaded.card.task == TaskConfig(name=task) and loaded.card.num_outputs == outputs
    assert loaded.card.labels == (() if task == "regression" else labels)
    assert run(loaded)["logits"].shape == ((2, 12, outputs) if head == "token_classification" else (2, outputs))
    hub.save(tmp_path / "b", loaded)
    assert hub.load(tmp_path / "b").card == loaded.card
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in "ab")
    assert after == before, "what said so already stays as it was"
    ours = dataclasses.replace(loaded, card=dataclasses.replace(loaded.card, source=None))
    hub.save(tmp_path / "c", ours)
    again = hub.load(tmp_path / "c").card
    assert (again.task, again.labels) == (loaded.card.task, loaded.card.labels)


@pytest.mark.parametrize("form", ["transformers", "workdir"])
@pytest.mark.parametrize(
    ("wanted", "task", "kept"),
    [
        (("classification",), "multi_label", True),
        (("classification", ("no", "yes")), "multi_label", True),
        (("classification", (), "multi_label"), "multi_label", True),
        (("classification", ("yes", "no")), "multi_label", False),
        (("classification", ("a", "b", "c")), "multi_label", False),
        (("classification", ("no", "yes"), "classification"), "classification", False),
        (("classification", (), "regression"), "regression", False),
        (("token_classification", ("no", "yes")), "token_classification", False),
    ],
)
def test_a_head_is_kept_where_it_is_for_the_same_task_and_labels(tmp_path, form, wanted, task, kept, caplog):
    made = bundle("classification", ("no", "yes"))
    scale = 1.0 if form == "transformers" else 2.0
    card = dataclasses.replace(made.card, task=TaskConfig(name="multi_label"), scale=scale)
    made = dataclasses.replace(made, card=card)
    (hub.save if form == "transformers" else hub.write)(tmp_path / "a", made)
    with caplog.at_level(logging.WARNING, logger="absl"):
        loaded = hub.load(tmp_path / "a", *wanted, seed=1)
    own = hub.load(tmp_path / "a")
    assert loaded.initialised == (() if kept else ("head",)) and loaded.card.task.name == task
    assert same(loaded.params["layers"], own.params["layers"]) and same(own.params, made.params)
    if kept:
        assert same(loaded.params, own.params) and loaded.card == own.card
    else:
        kernel = loaded.params["head"]["output"]["kernel"]
        assert kernel.shape == (32, loaded.card.num_outputs) and (loaded.card.scale, loaded.card.offset) == (1.0, 0.0)
        assert not np.array_equal(kernel[:, :1], own.params["head"]["output"]["kernel"][:, :1])
    there = form == "transformers" and not kept and wanted[0] == "classification"
    assert (f"its head is for ['multi_label', 'no', 'yes'], a new one for ['{task}'" in caplog.text) == there


def test_labels_name_the_outputs_of_a_head_that_has_no_names(tmp_path):
    hub.save(tmp_path / "a", bundle("classification", ("LABEL_0", "LABEL_1")))
    own, named = hub.load(tmp_path / "a"), hub.load(tmp_path / "a", "classification", ("no", "yes"))
    assert named.card.labels == ("no", "yes") and same(named.params, own.params) and not named.initialised
    assert hub.load(tmp_path / "a", "classification", ("no", "yes", "so")).initialised == ("head",)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("classification",), r"head='classification': a new one needs labels: .*labels\), or task='regression'$"),
        (("classification", (), "multi_label"), "head='classification': a new one needs labels"),
        (("classification", ("a",), "regression"), r"labels=\('a',\): a regressor has none"),
        (("classification", ("a",), "token_classification"),
         "task='token_classification': the head 'classification' is for 'classification' or 'multi_label' or"),
        (("masked_lm", (), "causal_lm"), "task='causal_lm': the head 'masked_lm' is for 'masked_lm'$"),
    ],
)  # fmt: skip
def test_a_head_without_a_purpose_is_refused(folder, tmp_path, wanted, message):
    hub.write(tmp_path / "ours", bundle())
    for source in (folder, tmp_path / "ours"):
        with pytest.raises(UserError, match=message):
            hub.load(source, *wanted)


def test_a_new_head_changes_what_the_config_says_it_is_for(tmp_path):
    hub.save(tmp_path / "a", bundle("classification", ("no", "yes")))
    edit(tmp_path / "a" / "config.json", problem_type="multi_label_classification")
    for number, (labels, task, kind) in enumerate([
        (("no", "yes"), "classification", "single_label_classification"),
        ((), "regression", None),  # one output says it
    ]):  # fmt: skip
        loaded = hub.load(tmp_path / "a", "classification", labels, task)
        hub.save(tmp_path / str(number), loaded)
        config = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert config["problem_type"] == (kind or "regression") and len(config["id2label"]) == loaded.card.num_outputs
        assert hub.load(tmp_path / str(number)).card.task.name == task


@pytest.mark.parametrize(
    ("labels", "scale", "offset"), [(("a", "b", "c"), 1 / 2.5, 0.0), ((), 3.0, -7.5), (("a", "b"), 1.0, 0.0)]
)
def test_scale_and_offset_of_a_card_are_in_the_saved_head(tmp_path, labels, scale, offset):
    made = bundle("classification", labels)
    task = TaskConfig(name="classification" if labels else "regression")
    made = dataclasses.replace(made, card=dataclasses.replace(made.card, task=task, scale=scale, offset=offset))
    made = dataclasses.replace(made, model=Transformer(made.config, "classification", made.card.num_outputs))
    made = dataclasses.replace(made, params=init_params(made.model, jax.random.key(0)))
    made.params["head"]["output"]["bias"] += 0.5
    hub.save(tmp_path / "a", made)
    back = hub.load(tmp_path / "a")
    wanted = run(made)["logits"] * scale + offset
    assert (np.abs(wanted - run(made)["logits"]).max() > 0.1) == (scale != 1.0)
    np.testing.assert_allclose(run(back)["logits"], wanted, rtol=1e-5, atol=1e-6)
    assert (back.card.scale, back.card.offset) == (1.0, 0.0)
    assert same(back.params, made.params) == (scale == 1.0)
    again = hub.rescaled(hub.rescaled(made, 2.0, 1.0 if offset else 0.0))
    np.testing.assert_allclose(run(again)["logits"], wanted, rtol=1e-5, atol=1e-5)


def test_a_last_layer_without_a_bias_takes_no_offset(tmp_path):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "n_embd": 32, "n_head": 4}
    settings = FAMILIES["gpt2"].read({**sizes, "n_layer": 1, "vocab_size": 64, "n_positions": 16}, "classification", "")
    model = Transformer(settings, "classification", 1)
    card = hub.Card(settings, "classification", TaskConfig(name="regression"), 16, scale=2.0)
    made = hub.Bundle(model, init_params(model, jax.random.key(0)), None, card)
    hub.save(tmp_path / "a", made)
    np.testing.assert_allclose(run(hub.load(tmp_path / "a"))["logits"], 2 * run(made)["logits"], rtol=1e-5)
    shifted = dataclasses.replace(made, card=dataclasses.replace(card, offset=3.0))
    with pytest.raises(UserError, match="the last layer of this model has no bias that could hold the offset"):
        hub.save(tmp_path / "b", shifted)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("shape", ["fsdp=8", "fsdp=2,tensor=4", "data=2,fsdp=2,tensor=2"])
def test_on_a_mesh_each_device_gets_its_shard_and_reads_no_more(folder, monkeypatch, shape):
    read = 0
    opened = tensors.open_folder

    def counting(folder):
        def count(one):
            def reader(index):
                nonlocal read
                part = one.read(index)
                read += part.size
                return part

            return dataclasses.replace(one, read=reader)

        return {name: count(one) for name, one in opened(folder).items()}

    monkeypatch.setattr(tensors, "open_folder", counting)
    mesh = sharding.make_mesh(shape)
    loaded = hub.load(folder, mesh=mesh)
    where = sharding.shardings(loaded.params, mesh, RULES)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded.params) == where
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(loaded.params))
    assert same(loaded.params, bundle().params)
    shards = sum(
        len({str(shard.index) for shard in leaf.addressable_shards}) * leaf.addressable_shards[0].data.size
        for leaf in jax.tree.leaves(loaded.params)
    )
    assert shards == trees.count(loaded.params) and read <= 8 * shards


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert", {"model_type": "t5"}, r"config\.json: model_type='t5': unknown; known: bert, roberta, xlm-roberta"),
        ("bert", {"model_type": ...}, r"config\.json: names no model_type"),
        ("bert", {"hidden_act": "snake"}, r"config\.json: hidden_act='snake': not supported; known: gelu"),
        ("bert", {"position_embedding_type": "relative_key"}, r"position_embedding_type='relative_key': not supported"),
        ("bert", {"is_decoder": True}, r"is_decoder=True: not supported, only False or None"),
        ("bert", {"hidden_size": 40}, r"word_embeddings\.weight is \[64, 32\], config\.json says \[64, 40\]"),
        ("bert", {"num_attention_heads": 5}, "5 heads do not divide a hidden size of 32"),
        ("bert", {"num_hidden_layers": 3}, r"the weights lack bert\.encoder\.layer\.2\.\S+ and 15 more, which config"),
        ("bert", {"num_hidden_layers": 0}, "num_layers is 0, not a positive integer"),
        ("bert", {"vocab_size": "many"}, "vocab_size is 'many', not a positive integer"),
        ("albert", {"inner_group_num": 2}, "inner_group_num=2: not supported, only 1"),
        ("albert", {"num_hidden_groups": 5}, "5 groups do not divide 2 layers"),
        ("deberta-v2", {"conv_kernel_size": 3}, "conv_kernel_size=3: not supported"),
        ("deberta-v2", {"relative_attention": False, "pos_att_type": ["c2p"]}, "relative_attention=False with pos_att"),
        ("deberta-v2", {"embedding_size": 16}, "embedding_size=16: not supported"),
        ("modernbert", {"mlp_bias": True}, "attention_bias=False with mlp_bias=True: not supported"),
        ("modernbert", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"], "num_hidden_layers": 3},
         "layer_types=.*: not supported"),
        ("modernbert", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type=.*: not supported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True: not supported"),
    ],
)  # fmt: skip
def test_what_this_package_does_not_have_is_refused_by_name(folder, name, changes, message):
    if name != "bert":
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
        (folder / "config.json").write_text(json.dumps({"model_type": name, **sizes}))
    edit(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message) as caught:
        hub.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no model here"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json: names no model_type"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: edit(folder / "config.json", architectures=["BertForSequenceClassification"], id2label=[1]),
         "id2label=.*: must map numbers to labels"),
        (lambda folder: edit(folder / "config.json", architectures=["BertForSequenceClassification"],
                             problem_type="regression", num_labels=3),
         "problem_type='regression' with 3 numbers: not supported, only one"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused(folder, harm, message):
    hub.load(folder)
    harm(folder)
    with pytest.raises(UserError, match=message):
        hub.load(folder)


def test_a_head_of_another_library_falls_back_to_the_encoder(folder, caplog):
    edit(folder / "config.json", architectures=["BertForNextSentencePrediction"])
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert hub.load(folder).card.head == "none"
    assert "architecture BertForNextSentencePrediction: its head is unknown" in caplog.text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:", "must be hf:ORG/NAME"),
        ("hf:a b", "must be hf:ORG/NAME"),
        ("pypi:name", "must be pypi:NAME==VERSION#sha256=HASH"),
        ("pypi:name==1.0", "add #sha256=HASH of the package's file"),
        ("no/such/folder", "no such folder"),
    ],
)
def test_a_name_that_names_nothing_is_refused(spec, message, tmp_path):
    with pytest.raises(UserError, match=message):
        hub.load(spec, cache=str(tmp_path))


def test_hf_fetches_safetensors_and_pickles_only_where_there_are_none(folder, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, tuple(allow_patterns)))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert same(hub.load("hf:org/name@v2").params, bundle().params)
    assert asked == [("org/name", "v2", ("*.json", "*.txt", "*.model", "*.safetensors"))]
    shutil.move(folder / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match="holds no weights"):
        hub.load("hf:org/name")
    assert asked[-1] == ("org/name", None, ("pytorch_model*.bin",))

    def offline(*arguments, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"hf:org/name: cannot be fetched \(ConnectionError: no route\)$"):
        hub.load("hf:org/name")


MEASURE = """
import sys, threading, time
import jax
from lepton_jax import hub

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

hub.load(sys.argv[2])  # what tracing and compiling leave behind is not counted
before, peak, done = resident(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
loaded = jax.block_until_ready(hub.load(sys.argv[1]).params)
done = True
watcher.join()
print(peak - before)
"""


@pytest.mark.once
def test_loading_holds_the_model_and_one_array_and_no_more(folder, tmp_path):
    small, sizes = bundle(), {"vocab_size": 20_000, "hidden_size": 512, "num_layers": 12, "intermediate_size": 2048}
    model = Transformer(dataclasses.replace(BERT, **sizes), small.card.head, small.card.num_outputs)
    shapes = abstract_params(model)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)
    card = dataclasses.replace(small.card, model=model.config)
    hub.save(tmp_path / "large", hub.Bundle(model, params, None, card))
    largest = max(4 * leaf.size for leaf in jax.tree.leaves(shapes))
    size = trees.num_bytes(shapes)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(hub.__file__).parents[2])
    others = 20 * 2**20  # of the interpreter
    assert 0.9 * size < int(done.stdout) < size + largest + others < 1.7 * size


@pytest.mark.parametrize(
    ("name", "head"), [(name, head) for name, family in FAMILIES.items() for head in family.heads]
)  # fmt: skip
def test_a_familys_table_has_each_parameter_once_and_every_rule_covers_it(name, head):
    family = FAMILIES[name]
    small = {
        **dict.fromkeys(("hidden_size", "dim", "n_embd"), 32),
        **dict.fromkeys(("num_attention_heads", "n_heads", "n_head"), 4),
        **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer"), 2),
        **dict.fromkeys(("intermediate_size", "hidden_dim", "vocab_size"), 64),
        "embedding_size": 16,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "norm_rel_ebd": "layer_norm",
    }
    if name == "deberta-v2":
        small["embedding_size"] = 32
    for tied in (True, False):
        settings = family.read(small | {"tie_word_embeddings": tied}, head, "config.json")
        model = Transformer(settings, head, 3 if head in ("classification", "token_classification") else 0)
        shapes = abstract_params(model)
        paths = [trees.path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
        table = family.tensors(settings, head)
        assert sorted(tensor.path for tensor in table) == sorted(paths)
        assert all(("{layer}" in tensor.name) == tensor.stacked for tensor in table)
        sharding.shardings(shapes, sharding.make_mesh("fsdp=2,tensor=4"), RULES)
        int8 = jax.eval_shape(quantize_int8, shapes)
        out = jax.eval_shape(lambda params, model=model: model.apply({"params": params}, IDS), int8)
        assert out["hidden"].shape == (2, 12, 32)


@pytest.mark.parametrize(
    ("name", "head", "changes", "count"),
    [
        ("bert", "pooler", {}, 109_482_240),  # BERT-base, uncased
        ("roberta", "pooler", {"max_position_embeddings": 514, "type_vocab_size": 1}, 124_645_632),  # RoBERTa-base
        ("distilbert", "none", {}, 66_362_880),
        ("gpt2", "causal_lm", {}, 124_439_808),
        ("modernbert", "none", {}, 149_014_272 + 768),  # ModernBERT-base, and the norm that its first layer has not
    ],
)
def test_published_sizes_have_their_number_of_parameters(name, head, changes, count):
    settings = FAMILIES[name].read(changes, head, "config.json")
    assert trees.count(abstract_params(Transformer(settings, head))) == count
