"""What a run will need: exact for what is counted by hand, in the right direction for what the compiler decides."""

import dataclasses
import functools

import numpy as np
import pytest

from lepton_jax.config import Config, DataConfig, OptimConfig, TaskConfig, TrainConfig
from lepton_jax.core import trees
from lepton_jax.data.batches import evaluation_batches
from lepton_jax.data.rows import Rows
from lepton_jax.models.transformer import Transformer, abstract_params
from lepton_jax.train import forecast as module
from lepton_jax.train.forecast import explain_out_of_memory, step_memory

pytestmark = pytest.mark.once

GIB = 2**30
forecast = functools.cache(module.forecast)  # several tests look at the same ones
LENGTH, ROWS = 12, 16


@pytest.fixture
def make(training):
    """Returns a function that gives the arguments of `forecast` for a mesh and changes of the tiny model."""

    def make(shape="", optim=OptimConfig(), train=TrainConfig(batch_size=ROWS), **changes):  # noqa: B008
        setup = training(shape=shape)
        model = dataclasses.replace(setup.config, **changes)
        task, data = TaskConfig(mask_rate=0.25), DataConfig(max_length=LENGTH)
        config = Config(model=model, task=task, data=data, optim=optim, train=train)
        return config, setup.mesh, setup.task, Transformer(model, "masked_lm")

    return make


def test_parameters_state_and_flops_are_those_counted_by_hand(make):
    config, mesh, task, model = make()
    found = forecast(config, mesh, task, model)
    count = trees.count(abstract_params(model))
    assert found.parameters == found.trainable_parameters == count
    batch = ROWS * LENGTH * 3 * 4 + ROWS * 4
    # Parameters and two moments in float32; steps, counts and the random key are a few words.
    assert 0 <= found.state_gib * GIB - (3 * 4 * count + batch) < 64
    assert found.needed_gib >= found.state_gib + found.temporary_gib and found.temporary_gib > 0
    assert found.available_gib and found.fits
    layer = 4 * 16 * 16 + 2 * 16 * 32 + 2 * LENGTH * 16
    products = 3 * 2 * (2 * LENGTH * layer + 3 * (16 * 16 + 16 * 64))
    assert found.flops_per_token == products / LENGTH


def test_parts_need_less_memory_than_the_whole(make):
    parts, larger = (make(train=TrainConfig(**train)) for train in (
        {"batch_size": ROWS, "accumulate": 4}, {"batch_size": 8 * ROWS}
    ))  # fmt: skip
    assert step_memory(*parts).temporary_gib < step_memory(*larger).temporary_gib


def test_sharding_and_freezing_reduce_the_state_of_a_device(make):
    whole, split = forecast(*make("data=8")), forecast(*make("fsdp=8"))
    assert split.parameters == whole.parameters and split.flops_per_token == whole.flops_per_token
    assert split.state_gib < whole.state_gib / 4
    frozen = forecast(*make("data=8", optim=OptimConfig(frozen=(r"^embeddings/",))))
    saved = (whole.trainable_parameters - frozen.trainable_parameters) * 2 * 4
    assert saved == 64 * 16 * 2 * 4 + 2 * 4 * (whole.trainable_parameters - frozen.trainable_parameters - 64 * 16)
    assert (whole.state_gib - frozen.state_gib) * GIB == pytest.approx(saved, abs=64)


def test_a_frozen_layer_of_a_stack_is_not_trained(make):
    config, mesh, task, model = make("data=8", optim=OptimConfig(frozen=("layers_0/",)))
    found, layers = forecast(config, mesh, task, model), trees.count(abstract_params(model)["layers"])
    assert found.parameters - found.trainable_parameters == layers // 2 > 0


def test_what_does_not_fit_says_so(make, monkeypatch):
    monkeypatch.setattr(module, "available_bytes", lambda mesh: 100_000)
    arguments = make("data=8")
    assert step_memory(*arguments).fits is False
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
    text = explain_out_of_memory(error, *arguments)
    assert text and text.startswith("out of memory: a step needs 0.00 of 0.00 GiB a device") and "\n" not in text
    assert "model.remat='full', model.dtype='bfloat16', mesh.shape='fsdp=-1'" in text
    text = explain_out_of_memory(error, *make(remat="full", dtype="bfloat16"))
    assert text and "remat" not in text and "bfloat16" not in text and "fsdp" not in text
    assert explain_out_of_memory(RuntimeError("INTERNAL: something else"), *arguments) is None


LABELS = {
    "classification": np.zeros(20, np.int32),
    "multi_label": np.zeros((20, 3), np.float32),
    "regression": np.zeros(20, np.float32),
    "token_classification": [np.arange(LENGTH, dtype=np.int32)] * 20,
}


BATCHES = [
    *((task, batching, True) for task in ("masked_lm", "causal_lm", *LABELS) for batching in ("packed", "padded")),
    *((task, "packed", False) for task in ("masked_lm", "causal_lm")),
]


@pytest.mark.parametrize(("task", "batching", "isolate"), BATCHES)
def test_the_batch_is_the_one_that_data_makes(make, task, batching, isolate):
    config, mesh, *_ = make()
    pair = "other" if task in LABELS else ""
    data = dataclasses.replace(config.data, batching=batching, isolate=isolate, pair=pair)
    config = dataclasses.replace(config, task=TaskConfig(name=task), data=data)
    ids = [np.arange(3, 3 + LENGTH, dtype=np.int32)] * 20  # a document a row, as long as the row
    rows = Rows(ids, LABELS.get(task), types=ids if task in LABELS else None)
    batch = next(evaluation_batches(rows, ROWS, LENGTH, pack=batching == "packed", isolate=isolate, pad_id=0))
    found = module.abstract_batch(config, mesh, 3)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()} == {
        name: (value.shape, value.dtype) for name, value in batch.items()
    }
