"""Strict JAX for the whole suite: eight CPU devices, no rank promotion, 32-bit numbers.

The environment is set here, before anything imports jax. A variable that is set already keeps its value, so
`JAX_PLATFORMS=cuda pytest` runs the suite on a GPU.

A global transfer guard is not feasible: `jnp.ones(3)` is a transfer from the host. A test of a jitted step wraps
the step, and nothing else, in `jax.transfer_guard("disallow")`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEVICES = 8

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}".strip()
    )
# Tests compile far more than they compute.
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Eight devices share few cores: where these are busy, one may come to a sum long after the others.
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
# Compiled programs are kept from one run of the suite to the next.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # two workers share small ones too
os.environ.setdefault("MPLBACKEND", "Agg")

from lepton_jax import cpus  # noqa: E402

cpus.spare_threads()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from lepton_jax.config import default_config, resolve  # noqa: E402
from lepton_jax.data.cache import locked  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_x64", False)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before JAX's own end, which takes thousands of compiled programs apart: half a minute a worker.
    atexit.register(os._exit, 0)


# A small world for the tests that need trained models: made texts, whose label two of their words decide.


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """Returns a function that gives the folder of a name, which `make` fills once for all workers of pytest-xdist."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def get(name: str, make: Callable[[Path], Any]) -> Path:
        with locked(root / "locks" / name):
            if not (root / "locks" / name / "made").exists():
                make(root / name)
                (root / "locks" / name / "made").touch()
        return root / name

    return get


@pytest.fixture(scope="session")
def cache(made_once: Callable[..., Path]) -> str:
    """The data cache of the suite's own runs."""
    return str(made_once("cache", Path.mkdir))


@pytest.fixture(scope="session")
def corpus(made_once: Callable[..., Path]) -> Path:
    """A folder with text.txt, labelled.jsonl (text, label) and rated.csv (text, rating)."""
    return made_once("corpus", make_corpus)


def make_corpus(folder: Path) -> None:
    folder.mkdir()
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 7))) for _ in range(300)]
    weights = [1 / (rank + 1) for rank in range(len(words))]

    def sentence(*extra: str) -> str:
        chosen = [*draw.choices(words, weights, k=8), *extra]
        draw.shuffle(chosen)
        return " ".join(chosen)

    marks = {"bad": ("sour", "bleak"), "good": ("bright", "sweet")}
    names = [draw.choice(["bad", "good", "good"]) for _ in range(240)]
    texts = [sentence(*marks[name]) for name in names]
    (folder / "text.txt").write_text("\n\n".join(texts + [sentence() for _ in range(200)]))
    rows = [json.dumps({"text": text, "label": name}) for text, name in zip(texts, names, strict=True)]
    (folder / "labelled.jsonl").write_text("\n".join(rows))
    table = [f"{text},{2.5 if name == 'good' else -1}" for text, name in zip(texts, names, strict=True)]
    (folder / "rated.csv").write_text("\n".join(["text,rating", *table]))


@pytest.fixture(scope="session")
def tiny_config(corpus: Path, cache: str) -> Callable[[str], ConfigDict]:
    """Returns stage -> a recipe of a very small run on the corpus."""
    model = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32, "max_positions": 16}
    common = {
        "model": {**model, "initializer_range": 0.2},
        "data": {"max_length": 16, "tokenizer_size": 400, "cache": cache, "validation_share": 0.15},
        "train": {"batch_size": 16, "learning_rate": 3e-3, "log_every": 2},
        "checkpoint": {"every": 100},
        "evaluate": {"every": 100, "batch_size": 16},
        "infer": {"lengths": (8, 16), "batch_sizes": (1, 16), "devices": 1, "texts": ("bright sweet", "sour bleak")},
    }

    def make(stage: str) -> ConfigDict:
        config = default_config(stage)
        runs = [config.pretrain, config.finetune] if stage == "quickstart" else [config]
        for run in runs:
            for section, values in common.items():
                run[section].update(values)
            if run.stage == "pretrain":
                run.data.train, run.train.steps = f"text:{corpus}/text.txt", 8
            else:
                run.data.train, run.data.test_share, run.train.steps = f"jsonl:{corpus}/labelled.jsonl", 0.2, 12
                run.task.name, run.compress.method = "classification", "int8"
                run.train.seed = 1  # from_scratch must not start where pretraining did
        return config

    return make


@pytest.fixture
def recipe(tmp_path: Path, tiny_config: Callable[[str], ConfigDict]) -> Callable[..., str]:
    """Returns a function that writes a tiny recipe as a file and gives its path."""

    def write(base: str, /, **changes: Any) -> str:
        tree = tiny_config(base).to_dict()
        for path, value in changes.items():
            *sections, name = path.split("__")
            node = tree
            for section in sections:
                node = node[section]
            node[name] = value
        file = tmp_path / "recipe.py"
        file.write_text(
            f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({tree!r})\n"
        )
        return str(file)

    return write


@pytest.fixture(scope="session")
def quickstart(made_once: Callable[..., Path], tiny_config: Callable[[str], ConfigDict]) -> Path:
    """The folder of a finished quickstart with `tiny_config("quickstart")`. Not to be changed: copy it."""
    from lepton_jax import stages

    return made_once("quickstart", lambda folder: stages.run(resolve(tiny_config("quickstart")), folder))


@pytest.fixture(scope="session")
def make_bundle(corpus: Path, cache: str) -> Callable[..., Any]:
    """Returns a function that makes an untrained `hub.Bundle` in which every parameter is random."""
    from lepton_jax import hub
    from lepton_jax.config import ModelConfig, TaskConfig
    from lepton_jax.core import trees
    from lepton_jax.data import tokenizers
    from lepton_jax.models.transformer import Transformer, abstract_params

    @functools.cache
    def make(head: str = "classification", labels: tuple[str, ...] = ("bad", "fair", "good"), **changes: Any) -> Any:
        texts = (corpus / "text.txt").read_text().split("\n\n")
        tokenizer = tokenizers.train(texts, size=400, cache=cache)
        name: Any = "regression" if head == "classification" and not labels else head
        task = TaskConfig(name=changes.pop("task", name))
        config = ModelConfig(
            vocab_size=448, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, max_positions=16, **changes
        )
        card = hub.Card(config, head, task, 16, labels)
        model = Transformer(config, head, card.num_outputs)
        draw = np.random.default_rng(0)

        def parameter(path: str, leaf: Any) -> jax.Array:
            return jnp.asarray(draw.normal(float(path.endswith("/scale")), 0.2, leaf.shape), jnp.float32)

        return hub.Bundle(model, trees.map_with_path(parameter, abstract_params(model)), tokenizer, card)

    return make
