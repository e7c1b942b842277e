"""The layout that `mesh.shape="auto"` takes."""

import dataclasses
import functools

import jax
import pytest

from lepton_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig, TaskConfig, TrainConfig
from lepton_jax.core import sharding
from lepton_jax.core.errors import UserError
from lepton_jax.models.transformer import Transformer, abstract_params
from lepton_jax.tasks.masked_lm import MaskedLM
from lepton_jax.train import forecast as module
from lepton_jax.train import layout

pytestmark = pytest.mark.once

CONFIG = Config(
    model=ModelConfig(vocab_size=512, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128),
    data=DataConfig(max_length=16),
    train=TrainConfig(batch_size=16),
    evaluate=EvaluateConfig(batch_size=16),
)
TASK = MaskedLM(TaskConfig(), 512, 4, (0, 1, 2, 3, 4))


def choose(config, devices=8):
    return layout.choose(config, TASK, Transformer(config.model, "masked_lm"), jax.devices()[:devices], "config")


def candidates(config, devices=8):
    return list(layout.candidates(config, Transformer(config.model, "masked_lm"), devices))


def test_candidates_come_by_what_they_send():
    assert candidates(CONFIG)[:4] == ["data=8", "fsdp=8", "data=4,tensor=2", "fsdp=4,tensor=2"]
    assert "data=1,tensor=4,sequence=2" in candidates(CONFIG)
    small = dataclasses.replace(CONFIG, train=TrainConfig(batch_size=2))
    assert candidates(small)[0] == "data=2,tensor=4"
    assert candidates(dataclasses.replace(small, train=TrainConfig(batch_size=4, accumulate=2)))[0] == "data=2,tensor=4"


def test_the_first_that_fits_is_taken_and_the_reason_says_what_each_needs(monkeypatch):
    """Copies need the whole state on each device, shards an eighth of it."""
    compiled = functools.cache(module.step_memory)
    available = module.available_bytes(sharding.make_mesh("data=8"))

    def step_memory(*arguments):
        return dataclasses.replace(compiled(*arguments), available_gib=available and available / 2**30)

    monkeypatch.setattr(layout, "step_memory", step_memory)
    plenty = choose(CONFIG)
    assert plenty[0] == "data=8" and "data=8 needs" in plenty[1] and "fsdp" not in plenty[1]
    available = (
        4 * 3 * sum(leaf.size for leaf in jax.tree.leaves(abstract_params(Transformer(CONFIG.model, "masked_lm"))))
    )
    shape, reason = choose(CONFIG)
    assert shape == "fsdp=8" and reason.startswith("config.mesh.shape: fsdp=8; of ") and "data=8 needs" in reason
    available = 1
    shape, reason = choose(CONFIG, devices=2)  # nothing fits: the one that needs least
    model, needs = Transformer(CONFIG.model, "masked_lm"), {}
    for each in candidates(CONFIG, 2):
        needs[each] = compiled(CONFIG, sharding.make_mesh(each, jax.devices()[:2]), TASK, model).needed_gib
        assert f"{each} needs" in reason
    assert needs[shape] == min(needs.values()) < max(needs.values())
    available = None
    assert choose(CONFIG, devices=2)[0] == "data=2"


def test_devices_that_nothing_divides_among_are_an_error():
    odd = dataclasses.replace(CONFIG, train=TrainConfig(batch_size=5), data=DataConfig(max_length=15),
                              model=dataclasses.replace(CONFIG.model, num_heads=1))  # fmt: skip
    with pytest.raises(UserError, match=r"^config\.mesh\.shape='auto': 8 devices share neither 5 rows"):
        choose(odd)
