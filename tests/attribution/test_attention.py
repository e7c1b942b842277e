"""Attention maps: what the modules multiply values by, for every kind of attention, and what transformers says."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from lepton_jax import hub
from lepton_jax.attribution import attention_maps
from lepton_jax.compress import quantize_int8
from lepton_jax.core.errors import UserError
from lepton_jax.models import attention
from lepton_jax.models.transformer import unstack

TEXT = "bright and sour"
KINDS = {
    "post-norm, learned": {"norm_position": "post", "positions": "learned"},
    "causal": {"causal": True},
    "local and global": {"global_every": 2, "local_window": 1},
    "shared layers": {"num_layer_groups": 1},
    "relative": {"relative": ("c2p", "p2c"), "relative_span": 8, "positions": "none"},
}


def outside(size: int, window: int) -> np.ndarray:
    place = np.arange(size)
    return np.abs(place[:, None] - place[None, :]) > window


@pytest.mark.parametrize("name", KINDS)
def test_rows_sum_to_1_and_give_what_attention_gives(make_bundle, monkeypatch, name):
    """Of a model applied layer by layer, without jit: values and outputs are caught at attention's one door."""
    bundle, caught = make_bundle(**KINDS[name]), []
    maps = attention_maps(bundle, TEXT)
    (row,) = bundle.tokenizer.rows([TEXT])
    T = len(row)
    assert maps.weights.shape == (2, 2, T, T) and len(maps.tokens) == T > 4
    np.testing.assert_allclose(maps.weights.sum(-1), 1, atol=1e-5)
    door = attention.attention

    def catch(q, k, v, segments, **options):
        caught.append((v, door(q, k, v, segments, **options)))
        return caught[-1][1]

    monkeypatch.setattr(attention, "attention", catch)
    with jax.disable_jit(name == "shared layers"):  # there a scan is left
        params = unstack(bundle.params)
        bundle.model.apply({"params": params}, row.ids[None], np.ones((1, T), np.int32), packed=False)
    caught = [pair for pair in caught if not isinstance(pair[0], jax.core.Tracer)]  # a scan also asks for shapes
    assert len(caught) == 2
    for weights, (v, out) in zip(maps.weights, caught, strict=True):
        given = np.einsum("hts,shk->thk", weights, v[0])
        np.testing.assert_allclose(given, out[0], atol=2e-5 * np.abs(out).max())
        even = np.broadcast_to(np.mean(v[0], axis=0), given.shape)
        assert np.abs(even - out[0]).max() > 1e-2 * np.abs(out).max(), "weights must matter"


def test_nobody_attends_to_what_comes_later_or_is_far_away(make_bundle):
    causal = attention_maps(make_bundle(causal=True), TEXT).weights
    size = causal.shape[-1]
    later = np.triu(np.ones((size, size), bool), 1)
    assert (causal[..., later] == 0).all() and (attention_maps(make_bundle(), TEXT).weights[..., later] > 0).all()
    local = attention_maps(make_bundle(global_every=2, local_window=1), TEXT).weights
    assert (local[1][:, outside(size, 1)] == 0).all() and (local[0][:, outside(size, 1)] > 0).all()


def test_asking_changes_nothing(make_bundle):
    bundle = make_bundle()
    ids = np.arange(5, 15, dtype=np.int32)[None]
    plain = jax.jit(bundle.model.apply)({"params": bundle.params}, ids)
    asked, seen = jax.jit(partial(bundle.model.apply, mutable=["attention"]))({"params": bundle.params}, ids)
    assert seen["attention"]["layers"]["attention"]["weights"].shape == (2, 1, 2, 10, 10)
    np.testing.assert_allclose(plain["logits"], asked["logits"], rtol=1e-6, atol=1e-6)
    assert set(jax.eval_shape(bundle.model.init, jax.random.key(0), ids)) == {"params"}


def test_works_for_int8_and_without_a_head(make_bundle):
    bundle = make_bundle()
    exact = attention_maps(bundle, TEXT).weights
    card = dataclasses.replace(bundle.card, weights="int8")
    int8 = attention_maps(dataclasses.replace(bundle, params=quantize_int8(bundle.params), card=card), TEXT).weights
    assert 0 < np.abs(int8 - exact).max() < 0.05
    assert attention_maps(make_bundle("none", ()), TEXT).weights.shape == exact.shape


def test_a_long_text_is_read_as_far_as_the_model_reads(make_bundle):
    maps = attention_maps(make_bundle(), "sour bright " * 40)
    assert len(maps.tokens) == 16 and maps.tokens[0] == "[CLS]" and maps.tokens[-1] == "[SEP]"


def test_what_cannot_be_read_is_refused(make_bundle):
    with pytest.raises(UserError, match=r"attention_maps\(bundle, text\): element 0 of the texts is int, not a string"):
        attention_maps(make_bundle(), 3)
    with pytest.raises(UserError, match="the model has no tokenizer"):
        attention_maps(dataclasses.replace(make_bundle(), tokenizer=None), TEXT)


@pytest.mark.parametrize("family", ["bert", "gpt2", "modernbert", "deberta-v2"])
def test_equals_transformers(make_bundle, tmp_path, family):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {"vocab_size": 448, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 48, "max_position_embeddings": 32, "initializer_range": 0.3}  # fmt: skip
    special = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 448},
        "modernbert": common
        | {"global_attn_every_n_layers": 2, "local_attention": 4}
        | {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")},
        "deberta-v2": common | {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 8},
    }
    config = transformers.AutoConfig.for_model(family, **special.get(family, common))
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    theirs = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    bundle = dataclasses.replace(hub.load(tmp_path), tokenizer=make_bundle().tokenizer)
    (row,) = bundle.tokenizer.rows([TEXT])
    with torch.no_grad():
        given = theirs(torch.tensor(row.ids[None].astype(np.int64)), output_attentions=True).attentions
    wanted = np.stack([each[0].numpy() for each in given])
    assert np.ptp(wanted, axis=-1).max() > 0.05, "attention must not be even"
    np.testing.assert_allclose(attention_maps(bundle, TEXT).weights, wanted, atol=2e-5)
