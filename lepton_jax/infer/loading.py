"""The one door to predictors: a folder in, a callable over texts out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lepton_jax.config import InferConfig
from lepton_jax.core.errors import UserError
from lepton_jax.data.cache import keep_compiled
from lepton_jax.infer import exports, programs
from lepton_jax.infer.predictor import Predictor
from lepton_jax.infer.profiles import Profile
from lepton_jax.infer.programs import Pooling, Precision

if TYPE_CHECKING:
    from lepton_jax.hub import Bundle


def load(
    folder: str | Path,
    precision: Precision | None = None,
    config: InferConfig | None = None,
    *,
    task: str | None = None,
    pooling: Pooling = "mean",
    top: int = 5,
    compiled: bool = True,
) -> Predictor:
    """Loads a trained model, or what `Predictor.export` wrote, as a predictor, whose programs are compiled then.

    Compiled programs are kept in the cache (`data.cache.cache_folder`), unless JAX's own is set: the second time takes
    a fraction.

    Args:
      folder: see `hub.load`; or an export, which runs without the code of the model.
      precision: "float32"; "bfloat16" (parameters and computation); "int8" (weights per output channel, activations
        per token, or as a calibrated int8 model has them, accumulated in int32; the rest float32). None: float32, or
        int8 where the folder holds int8 weights, which load as nothing else. An export has one alone.
      config: buckets and devices.
      task: what for, one of `signature.TASKS`: "embedding" takes the hidden states of any model; None: what the model's
        head is for, embeddings if it has none.
      pooling: of the task "embedding": the mean over a text's tokens, or its first or last one.
      top: of the task "masked_lm": how many tokens for each mask.
      compiled: False: each bucket is compiled when a text first needs it.

    Raises:
      UserError: there is no model in the folder, or none for this; an export is damaged, of another version or for
        other devices.
    """
    keep_compiled()
    config = config or InferConfig()
    where = Path(folder).expanduser()
    if not exports.is_export(where):
        from lepton_jax import hub

        bundle, profile = hub.load(folder), None
        program = programs.of(bundle, precision, task, pooling, top, config.attention)
        if bundle.folder is not None and program.signature.task == bundle.card.task.name:
            profile = Profile.find(bundle.folder)
    else:
        program, profile = exports.read(where)
        asked = (("precision", precision, program.precision), ("task", task, program.signature.task),
                 ("infer.attention", config.attention, "auto"))  # fmt: skip
        for name, wanted, has in asked:
            if wanted not in (None, has):
                raise UserError(f"{where}: was exported with {name}={has!r}, and is nothing else; {name}={wanted!r} "
                                f"needs the model")  # fmt: skip
    predictor = Predictor(program, config, profile)
    if compiled:
        predictor.compile()
    return predictor


def from_bundle(bundle: Bundle, precision: Precision | None = None, config: InferConfig | None = None) -> Predictor:
    """Returns the predictor of a model in memory, see `load`; each bucket is compiled when a text first needs it."""
    config = config or InferConfig()
    return Predictor(programs.of(bundle, precision, attention=config.attention), config)
