"""The int8 form of a fine-tuned model: made, measured on validation, and written if it loses little enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from lepton_jax import hub, infer, processes
from lepton_jax.compress import Inputs, calibrate, quantize_int8, see_inputs
from lepton_jax.config import QUALITY, CompressConfig, Config
from lepton_jax.core import trees
from lepton_jax.core.errors import UserError
from lepton_jax.data.sources import Examples
from lepton_jax.infer import Predictor
from lepton_jax.infer.predictor import speedup
from lepton_jax.stages.assessment import Judge, Line, Outputs, Part

_ROWS = 64  # of a batch in which inputs are observed
SHORTEST = 4  # tokens of such a row, special ones included


def compress(
    config: Config,
    folder: Path,
    bundle: hub.Bundle,
    train: Examples,
    validation: Part,
    outputs: Callable[[], Outputs],
    inputs: Mapping[str, Inputs] | None = None,
) -> tuple[Predictor | None, dict[str, Any]]:
    """Writes the int8 model of a float bundle into a folder, unless it is too much worse.

    Args:
      config: its section `compress` says how, and what may be lost.
      folder: of the int8 model.
      bundle: the float model.
      train: examples that inputs are observed on.
      validation: examples that the loss of quality is measured on, if there is a limit.
      outputs: gives those of the float model for these.
      inputs: see `quantised`.

    Returns:
      (the predictor as it loads from the folder, or None where it was refused; where there is a limit, `refused` and
      `validation_drop`, in the unit of `config.QUALITY`).
    """
    int8, found, limit = quantised(bundle, config.compress, train, inputs), {}, config.compress.max_drop
    if limit < 1:
        name, judge, examples = QUALITY[config.task.name], Judge(int8.card), validation.examples
        own = infer.from_bundle(int8, "int8", config.infer).outputs(examples.texts, examples.pairs)
        drop = judge.measure(validation, outputs())[name] - judge.measure(validation, own)[name]
        found = {"refused": not drop <= limit, "validation_drop": drop}
        if found["refused"]:
            logging.warning("no int8 model is written: on validation it loses %.4f of %s, and compress.max_drop is %g",
                            drop, name, limit)  # fmt: skip
            return None, found
    # A run that was killed just after this does not write it again.
    if not processes.on_first((folder / "params").exists):
        hub.write(folder, int8)
    return infer.load(folder, "int8", config.infer, compiled=False), found


def quantised(
    bundle: hub.Bundle, config: CompressConfig, examples: Examples, inputs: Mapping[str, Inputs] | None = None
) -> hub.Bundle:
    """Returns the int8 form of a float bundle.

    Args:
      bundle: the float model.
      config: how it is quantised.
      examples: inputs are observed on some of them, see `calibrated`.
      inputs: how they are rounded, where that is decided; None: `calibrated` says.
    """
    inputs = calibrated(bundle, config, examples) if inputs is None else inputs
    card = dataclasses.replace(
        bundle.card,
        weights="int8",
        keep_float=config.keep_float,
        step=tuple(path for path, each in sorted(inputs.items()) if each.step is not None),
        smooth=tuple(path for path, each in sorted(inputs.items()) if each.smooth is not None),
    )
    params = quantize_int8(bundle.params, config.keep_float, inputs)
    return dataclasses.replace(bundle, params=params, card=card)


def observes(config: CompressConfig) -> bool:
    """Whether inputs are observed on texts."""
    return config.inputs != "dynamic" or config.smooth > 0


def require_observable(config: CompressConfig, long_enough: Collection[Any]) -> None:
    """Raises UserError where inputs are to be observed and there is nothing to observe them on.

    Args:
      config: how a model is quantised.
      long_enough: what there is.
    """
    if observes(config) and not long_enough:
        raise UserError(f"config.compress.inputs={config.inputs!r}, smooth={config.smooth:g}: no training text has "
                        f"{SHORTEST} tokens to observe inputs on; take inputs='dynamic' and smooth=0")  # fmt: skip


def calibrated(bundle: hub.Bundle, config: CompressConfig, examples: Examples) -> dict[str, Inputs]:
    """Returns path of a kernel -> how its inputs are to be rounded; of the examples, some serve to observe them.

    Of what the bundle's weights lacked and what was initialised nothing is known: each token has its scale there.

    Raises:
      UserError: no text is long enough to observe inputs on, or they are not finite.
    """
    if not observes(config):
        return {}
    plain = dataclasses.replace(bundle.config, dtype="float32", attention="auto")
    seen = see_inputs(bundle.model.clone(config=plain), bundle.params, _rows(bundle, examples, config.texts))
    require_observable(config, seen)
    left_out = (*config.keep_float, *(f"^{name}/" for name in bundle.initialised))
    seen = {path: each for path, each in seen.items() if not trees.matches(left_out, path)}
    bound = None if config.inputs == "dynamic" else config.inputs
    return calibrate(bundle.params, seen, bound, config.percentile, config.smooth)


def _rows(bundle: hub.Bundle, examples: Examples, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of up to `count` examples from all over them, cut so that there is no padding: to lengths that are
    powers of two."""
    tokenizer, card = bundle.tokenizer, bundle.card
    assert tokenizer is not None
    some = examples.some(count)
    lengths = np.array([len(row) for row in tokenizer.rows(some.texts, some.pairs, card.max_length)])
    lengths = 1 << np.log2(np.maximum(lengths, 1)).astype(int)
    for length in sorted({*lengths.tolist()} - set(range(SHORTEST))):
        alike = some.take(np.flatnonzero(lengths == length).tolist())
        rows = tokenizer.rows(alike.texts, alike.pairs, length)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            batch = {"token_ids": np.stack([row.ids for row in part])}
            if alike.pairs is not None and card.model.type_vocab_size > 1:
                batch["token_type_ids"] = np.stack([row.type_ids for row in part])
            yield batch


def compare(
    predictor: Predictor, int8: Predictor, judge: Judge, part: Part, lines: list[Line]
) -> tuple[dict[str, Any], list[Line]]:
    """Returns the figures of an int8 predictor beside its float original, and its own lines of predictions."""
    examples = part.examples
    outputs = int8.outputs(examples.texts, examples.pairs)
    figures, own = judge.measure(part, outputs), judge.predictions(part, outputs)
    if judge.kind != "numbers":
        pairs = zip(lines, own, strict=True)
        figures["agreement"] = float(np.mean([one["prediction"] == other["prediction"] for one, other in pairs]))
    figures["size_ratio"] = trees.num_bytes(predictor.params) / trees.num_bytes(int8.params)
    figures["speedup"] = speedup(predictor, int8, examples.texts, examples.pairs)
    return figures, own
