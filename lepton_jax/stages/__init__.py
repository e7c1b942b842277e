"""The stages of a model's life: functions from a config and a folder to a summary. `main` and notebooks call them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lepton_jax import hub, plan, processes
from lepton_jax.config import (
    CompareConfig,
    CompressConfig,
    Config,
    ConvertConfig,
    InferConfig,
    MeshConfig,
    PredictConfig,
    QuickstartConfig,
    ReportConfig,
    runs,
)  # fmt: skip
from lepton_jax.core import trees
from lepton_jax.data.cache import keep_compiled
from lepton_jax.stages.comparing import compare
from lepton_jax.stages.completion import Summary, complete
from lepton_jax.stages.finetuning import finetune
from lepton_jax.stages.predicting import predict
from lepton_jax.stages.pretraining import pretrain
from lepton_jax.stages.reporting import report_on
from lepton_jax.train import weights_and_biases
from lepton_jax.train.loop import check_attention, check_mesh


def run(config: Any, folder: str | Path) -> Summary:
    """Runs the stage of a resolved config in a folder, and returns what `folder/summary.json` then holds.

    A run that was interrupted goes on from its newest checkpoint; one that is complete is not repeated. A dry run
    writes nothing, and returns what the run would need. Of several processes (`processes.start`) each calls this, and
    gets the same summary; the first one writes.

    Raises:
      UserError: the folder holds another run, the devices do not fit the config, or the data are not usable.
    """
    folder = Path(folder)
    if isinstance(config, PredictConfig):  # its folder is that of a run which is complete, and stays as it is
        keep_compiled(config.cache)
        return processes.on_first(lambda: predict(config, folder))
    if isinstance(config, ReportConfig):  # it is no run: what it says changes with the runs that it is of
        return processes.on_first(lambda: report_on(config, folder))
    trainings = runs(config)
    keep_compiled(trainings[0][1].data.cache if trainings else getattr(config, "cache", ""))
    meshes = [plan.make_mesh(each, where) for where, each in trainings]
    with processes.together():  # every check that needs no data, before any of them writes or trains
        for (where, each), mesh in zip(trainings, meshes, strict=True):
            check_mesh(each, mesh, where)
            check_attention(each, mesh, where)
    for where, each in trainings:
        weights_and_biases.require(each.train.wandb, where)
    same = [dataclasses.replace(each, mesh=MeshConfig(each.mesh.shape)) for _, each in trainings]
    processes.require_equal("other configs", repr(same or config))
    if isinstance(config, (Config, QuickstartConfig)) and config.dry_run:
        return plan.dry_run(config, meshes)

    def work() -> tuple[Summary, dict[str, Path]]:
        if isinstance(config, QuickstartConfig):
            return quickstart(config, folder)
        if isinstance(config, ConvertConfig):
            return convert(config, folder), {"convert": folder}
        if isinstance(config, CompareConfig):
            return processes.on_first(lambda config=config: compare(config)), {"compare": folder}
        if config.stage == "pretrain":
            return pretrain(config, folder, meshes[0]), {config.stage: folder}
        return finetune(config, folder, meshes[0])

    return complete(folder, config, work)


def quickstart(config: QuickstartConfig, folder: Path) -> tuple[Summary, dict[str, Path]]:
    """Pretrains, fine-tunes from that and, unless the config leaves it out, with the same budget from random weights.

    Returns:
      (summary of all, title -> folder of each run).
    """
    pretrained = str(folder / "pretrain")
    model, data = config.finetune.model, config.finetune.data
    configs = {
        "pretrain": config.pretrain,
        "finetune": dataclasses.replace(config.finetune, model=dataclasses.replace(model, init=pretrained)),
    }
    if config.from_scratch:
        configs["from_scratch"] = dataclasses.replace(
            config.finetune,
            data=dataclasses.replace(data, tokenizer=pretrained),
            evaluate=dataclasses.replace(config.finetune.evaluate, baseline=False),
            compress=CompressConfig(),
            infer=InferConfig(),
        )
    parts = {name: run(each, folder / name) for name, each in configs.items()}
    scratch, summary = parts.get("from_scratch", {}), parts["pretrain"] | parts["finetune"]
    for name in ("accuracy", "f1", "mean_squared_error"):
        if f"finetune.{name}" in scratch:
            summary[f"finetune.from_scratch_{name}"] = scratch[f"finetune.{name}"]
    return summary, {name: folder / name for name in configs}


def convert(config: ConvertConfig, folder: Path) -> Summary:
    """Writes a trained model of any source into a folder: as a model of ours, or below it for `transformers`."""
    bundle = hub.load(config.source, cache=config.cache)
    # Both appear complete or not at all, so that a run that was killed just after one does not write it again.
    if config.form == "transformers" and not processes.on_first((folder / "transformers").exists):
        processes.on_first(lambda: hub.save(folder / "transformers", bundle))
    if config.form == "workdir" and not processes.on_first((folder / "params").exists):
        hub.write(folder, bundle)
    return {
        "convert.head": bundle.card.head,
        "convert.parameters": trees.count(bundle.params),
        "convert.initialised": list(bundle.initialised),
        "convert.unexpected": list(bundle.unexpected),
    }
