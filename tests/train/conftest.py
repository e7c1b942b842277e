"""A tiny model in training, for the tests of this folder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.config import ModelConfig, OptimConfig, TaskConfig, TrainConfig
from lepton_jax.core import sharding
from lepton_jax.models.transformer import Transformer
from lepton_jax.optim import make_numbers, make_optimizer, rate_of
from lepton_jax.tasks.causal_lm import CausalLM
from lepton_jax.tasks.classification import Classification
from lepton_jax.tasks.masked_lm import MaskedLM
from lepton_jax.train.state import abstract_state, make_state, trainable
from lepton_jax.train.step import jit_train_step, make_train_step

MODEL = ModelConfig(
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=12,
    initializer_range=0.2,
)  # fmt: skip
TASKS = {
    "masked_lm": MaskedLM(TaskConfig(mask_rate=0.25), 64, 4, (0, 1, 2, 3, 4)),
    "causal_lm": CausalLM(),
    "classification": Classification(3),
}


OPTIM = OptimConfig()
TRAIN = TrainConfig(learning_rate=0.01, steps=100)


@dataclasses.dataclass(frozen=True)
class Training:
    """All that a train step is made of. `shape` describes the mesh of all devices; "": the first one alone."""

    name: str = "masked_lm"
    shape: str = ""
    optim: OptimConfig = OPTIM
    train: TrainConfig = TRAIN
    config: ModelConfig = MODEL

    @functools.cached_property
    def mesh(self):
        return sharding.make_mesh(self.shape, None if self.shape else jax.devices()[:1])

    @functools.cached_property
    def task(self):
        return TASKS[self.name]

    @functools.cached_property
    def model(self):
        return Transformer(self.config, self.task.head, self.task.num_outputs)

    @functools.cached_property
    def numbers(self):
        return make_numbers(self.optim, self.train)

    @functools.cached_property
    def optimizer(self):
        schedule = functools.partial(rate_of, self.optim.schedule, numbers=self.numbers)
        return make_optimizer(self.optim, schedule, self.optim.weight_decay)

    @functools.cached_property
    def abstract(self):
        return abstract_state(self.model, self.optimizer, self.optim, self.mesh)

    def state(self, init=None):
        return make_state(self.model, self.optimizer, self.optim, self.mesh, self.train.seed, init)

    def start(self):
        """Returns the state of `train.seed`, placed on the mesh: initialised once, on one device."""
        state = initial_state(dataclasses.replace(self, shape=""))
        state = jax.tree.map(jnp.copy, state)  # a step donates what it gets
        return jax.tree.map(lambda leaf, wanted: jax.device_put(leaf, wanted.sharding), state, self.abstract)

    def pure_step(self):
        chosen = trainable(self.optim, self.abstract.params)
        return make_train_step(self.task, self.model.on(self.mesh), self.optim, chosen, self.train.accumulate)

    @functools.cached_property
    def step(self):
        return compiled_step(self)

    def run(self, batches, start=None):
        """Returns the state after a step on each batch, and the metrics of each."""
        state, history = start or self.start(), []
        for batch in batches:
            state, metrics = self.step(state, self.put(batch))
            history.append({name: float(value) for name, value in metrics.items()})
        return state, history

    def put(self, batch):
        return sharding.put_batch(batch, self.mesh)


# Tests with equal settings share what is expensive.
@functools.cache
def initial_state(setup):
    return setup.state()


@functools.cache
def compiled_step(setup):
    return jit_train_step(setup.pure_step(), setup.abstract, setup.mesh, setup.numbers)


@pytest.fixture(scope="session")
def training():
    """Returns the class `Training`."""
    return Training


def make_rows(rows=8, seed=0):
    """Returns a batch in which every row differs: lengths, two packed documents in row 1, a filler row at the end.

    Label = the class of the first token. Row 2 has special tokens alone, so it has nothing for masked LM to predict.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 13, rows)
    segments = (np.arange(12) < lengths[:, None]).astype(np.int32)
    positions = np.arange(12, dtype=np.int32) * segments
    token_ids = np.where(segments, rng.integers(5, 64, (rows, 12)), 0).astype(np.int32)
    labels = (token_ids[:, 0] % 3).astype(np.int32)
    segments[1], positions[1] = [1] * 5 + [2] * 7, [*range(5), *range(7)]
    token_ids[1], token_ids[2] = rng.integers(5, 64, 12), np.minimum(token_ids[2], 4)
    weight = np.ones(rows, np.float32)
    weight[-1] = 0
    return {
        "token_ids": token_ids, "attention_mask": segments, "positions": positions, "labels": labels, "weight": weight
    }  # fmt: skip


@pytest.fixture(scope="session")
def rows():
    """Returns the function `make_rows`."""
    return make_rows


def numbers_of(tree):
    """Returns path -> numpy array of every leaf, a random key as its words."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(
            jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.fixture(scope="session")
def numbers():
    """Returns the function `numbers_of`."""
    return numbers_of
