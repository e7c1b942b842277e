"""Which backend a case gets, and what is said where the wanted one cannot serve it."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from lepton_jax.config import ModelConfig
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.models.attention import backends_of
from lepton_jax.models.backends import BACKENDS, choose
from lepton_jax.models.backends.case import Case, device_of
from lepton_jax.models.transformer import Transformer, abstract_params

CPU = Case("cpu", 512, 64, "float32")
GPU = Case("gpu", 512, 64, "bfloat16", capability=9.0)
TPU = Case("tpu", 512, 64, "bfloat16")
TABLE = [
    (CPU, {}, "xla"),
    (CPU, {"window": 64}, "banded"),
    (CPU, {"window": 64, "length": 256}, "xla"),
    (CPU, {"window": 128}, "xla"),
    (CPU, {"window": 64, "bias": True}, "xla"),
    (CPU, {"window": 64, "split": True}, "xla"),
    (GPU, {"rows": "full"}, "cudnn"),
    (GPU, {"rows": "padded"}, "cudnn"),
    (GPU, {"rows": "padded", "length": 8192}, "cudnn"),
    (GPU, {}, "cudnn"),
    (GPU, {"causal": True}, "cudnn"),
    (GPU, {"window": 64, "length": 1024}, "cudnn"),
    (GPU, {"window": 64, "length": 2048}, "banded"),
    (GPU, {"length": 2048}, "triton"),
    (GPU, {"length": 2048, "head_size": 256}, "cudnn"),
    (GPU, {"length": 2000}, "xla"),
    (GPU, {"length": 2000, "window": 64}, "banded"),
    (GPU, {"dtype": "float32"}, "xla"),
    (GPU, {"dtype": "float32", "length": 2048}, "xla"),
    (GPU, {"capability": 7.5}, "xla"),
    (GPU, {"capability": 0.0}, "xla"),  # of another maker
    (GPU, {"bias": True}, "xla"),
    (GPU, {"split": True}, "xla"),
    (GPU, {"head_size": 60}, "xla"),
    (GPU, {"head_size": 256}, "cudnn"),
    (GPU, {"head_size": 256, "capability": 8.0}, "xla"),
    (TPU, {}, "splash"),
    (TPU, {"rows": "full", "dtype": "float32"}, "splash"),
    (TPU, {"window": 64, "length": 8192}, "splash"),
    (TPU, {"length": 200}, "xla"),
    (TPU, {"length": 1000, "window": 64}, "banded"),
    (TPU, {"bias": True}, "xla"),
    (TPU, {"split": True}, "xla"),
]


@pytest.mark.parametrize(("base", "changes", "expected"), TABLE)
def test_the_choice(base, changes, expected):
    case = dataclasses.replace(base, **changes)
    assert choose(case) == expected
    assert BACKENDS[expected].refuses(case) is None


REFUSED = [
    (CPU, {"window": 64, "bias": True}, "banded", "takes no relative positions .*; choose 'xla', or 'auto'"),
    (CPU, {"window": 64, "split": True}, "banded", "needs all positions of a row on one device"),
    (CPU, {}, "cudnn", "is for NVIDIA GPUs .*; choose 'xla', or 'auto'"),
    (CPU, {"window": 64}, "splash", "is for TPUs; choose 'banded', or 'auto'"),
    (CPU, {}, "triton", "is for NVIDIA GPUs"),
    (GPU, {"capability": 7.5}, "cudnn", "from compute capability 8.0 on"),
    (GPU, {"dtype": "float32"}, "cudnn", "computes in bfloat16, not in model.dtype='float32'; choose 'xla'"),
    (GPU, {"length": 192}, "cudnn", "a multiple of 128 positions, not 192 .data.max_length."),
    (GPU, {"head_size": 320}, "cudnn", "a multiple of 8 and at most 256 features, not 320"),
    (GPU, {"bias": True}, "cudnn", "takes no relative positions"),
    (GPU, {"split": True}, "cudnn", "needs all positions of a row on one device"),
    (GPU, {"window": 64}, "triton", "knows no window .*; choose 'cudnn', or 'auto'"),
    (GPU, {"head_size": 256}, "triton", "at most 128 features, not 256"),
    (GPU, {"length": 192}, "triton", "a multiple of 128 positions"),
    (TPU, {"length": 192}, "splash", "a multiple of 128 positions, not 192 .*; choose 'xla', or 'auto'"),
    (TPU, {"split": True}, "splash", "needs all positions of a row on one device"),
    (CPU, {"bias": True}, "int8", "takes no relative positions .*; choose 'xla', or 'auto'"),
    (CPU, {"split": True}, "int8", "needs all positions of a row on one device"),
]


@pytest.mark.parametrize(("base", "changes", "wanted", "message"), REFUSED)
def test_one_that_cannot_says_why_and_what_can(base, changes, wanted, message):
    with pytest.raises(UserError, match=f"config.finetune.model.attention='{wanted}': .*{message}"):
        choose(dataclasses.replace(base, **changes), wanted, "config.finetune")


def test_layers_without_a_window_leave_blocks_to_others():
    assert choose(CPU, "banded") == "xla"
    config = ModelConfig(vocab_size=64, global_every=3, max_positions=512)
    assert list(backends_of(config, 512, True, None).values()) == ["banded", "xla"]
    with pytest.raises(UserError, match=r"is for windows, and model\.global_every=1 has none; choose 'xla'"):
        backends_of(ModelConfig(attention="banded"), 128, True, None)


def test_a_jax_without_the_triton_kernel_is_served_by_others(monkeypatch):
    case = dataclasses.replace(GPU, length=2048)
    assert choose(case) == "triton"
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.endswith("gpu.attention") else found(name)
    )
    assert choose(case) == "cudnn"
    with pytest.raises(UserError, match="no longer has its kernel"):
        choose(case, "triton")


def test_devices_decide():
    assert device_of(None) == {"platform": "cpu", "split": False, "capability": 0.0}
    assert device_of(sharding.make_mesh("data=4,sequence=2"))["split"]


def test_a_model_knows_its_rows(monkeypatch):
    """What it is told of padding and documents reaches the choice."""
    model = Transformer(ModelConfig(vocab_size=64, hidden_size=16, num_layers=1, dtype="bfloat16", causal=True))
    params, ids = abstract_params(model), jax.ShapeDtypeStruct((2, 8), np.int32)
    seen = {}
    monkeypatch.setattr("lepton_jax.models.attention.choose", lambda case, wanted: seen.setdefault(case, "xla"))
    for mask, packed in ((None, True), (ids, True), (ids, False)):
        jax.eval_shape(lambda params, *ids, packed=packed: model.apply({"params": params}, *ids, packed=packed),
                       params, *(x for x in (ids, mask) if x is not None))  # fmt: skip
    assert [case.rows for case in seen] == ["full", "packed", "padded"]
    assert {dataclasses.replace(case, rows="full") for case in seen} == {
        Case("cpu", 8, 4, "bfloat16", rows="full", causal=True)
    }
