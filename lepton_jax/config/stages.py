"""The configs of stages other than a single training, and which class each stage has.

The sections of a training are in `sections`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from lepton_jax.config.sections import Config, InferConfig
from lepton_jax.core.fields import number


@dataclasses.dataclass(frozen=True)
class QuickstartConfig:
    """A chain: `pretrain`, then `finetune` from it, then, with `from_scratch`, `finetune` from random weights."""

    stage: Literal["quickstart"] = "quickstart"
    dry_run: bool = False
    from_scratch: bool = True  # whether to fine-tune from random weights too, for comparison
    pretrain: Config = Config(stage="pretrain")  # noqa: RUF009, it is frozen
    finetune: Config = Config(stage="finetune")  # noqa: RUF009


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """A trained model in another form: of this package, or of `transformers`."""

    stage: Literal["convert"] = "convert"
    source: str = ""  # what `hub.load` takes: a folder, hf:ORG/NAME, pypi:NAME==VERSION
    form: Literal["workdir", "transformers"] = "workdir"
    cache: str = ""  # see DataConfig


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Two trained models: fine-tuned ones by their predictions of the same test examples, others by their figures."""

    stage: Literal["compare"] = "compare"
    a: str = ""  # the WORKDIR of a training, or those of its seeds: a folder of them, or several by commas
    b: str = ""  # another one


@dataclasses.dataclass(frozen=True)
class SlurmConfig:
    """What each job of a sweep asks for; one job a run."""

    cluster: Literal["slurm", "local"] = "slurm"  # "local": as processes of this machine, all at once
    partition: str = ""
    account: str = ""
    minutes: int = number(240, 1)
    nodes: int = number(1, 1)
    cpus: int = number(8, 1)
    gpus: int = number(0, 0)  # a node
    memory_gb: int = number(32, 1)  # a node
    at_once: int = number(16, 1)  # jobs that may run at the same time
    extra: tuple[str, ...] = ()  # further settings of sbatch, each NAME=VALUE


@dataclasses.dataclass(frozen=True)
class AblateConfig:
    """The variants of an experiment, each a run."""

    stage: Literal["ablate"] = "ablate"
    experiment: str = ""  # a file, see `lepton_jax.sweeps.experiment`
    only: str = ""  # runs whose name or hash this is part of; empty: all
    dry_run: bool = False  # say what it will cost, and run nothing
    where: Literal["here", "slurm", "commands"] = "here"
    workers: int = number(1, 1)  # here: runs at the same time
    gpus: tuple[str, ...] = ()  # here: a worker for each, which sees no other; empty: `workers`
    template: str = "{command}"  # of commands: may hold {quoted}, the command as one word, {index} and {hash}
    slurm: SlurmConfig = SlurmConfig()


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """A search in the space of an experiment, each trial a run."""

    stage: Literal["search"] = "search"
    experiment: str = ""  # a file, see `lepton_jax.sweeps.searching`
    trials: int = number(20, 1)  # in all, those of earlier commands among them
    workers: int = number(1, 1)
    gpus: tuple[str, ...] = ()  # a worker for each, which sees no other; empty: `workers`
    pruner: Literal["median", "hyperband", "none"] = "median"  # what decides which trial is given up
    startup: int = number(5, 1)  # of "median": trials that end before any is given up
    seed: int = number(0, 0)  # of the search


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """A report of runs that are there: tables, figures, and which setting is the best."""

    stage: Literal["report"] = "report"
    runs: str = ""  # WORKDIRs, folders of them, or globs, by commas
    metrics: tuple[str, ...] = ()  # of summary.json, the main one first; empty: what tells how good their models are
    x: str = ""  # a field, such as data.max_examples: the main metric over it as a figure
    by: str = ""  # another field, whose values are lines of that figure
    title: str = "Report"


@dataclasses.dataclass(frozen=True)
class ApplyConfig(InferConfig):
    """What a trained model is applied to, and how."""

    input: str = ""  # a file of texts: .txt (one a line), .jsonl, .csv, .tsv or .parquet; "-": lines of standard input
    output: str = ""  # gets a line of JSON for each of them, in their order
    text: str = "text"  # the column with the text
    pair: str = ""  # the column with a second text; empty: single texts
    precision: Literal["", "float32", "bfloat16", "int8"] = ""  # empty: that of the weights
    task: str = ""  # "embedding" takes the hidden states of any model; empty: what the model's head is for
    pooling: Literal["mean", "cls", "last"] = "mean"  # of embeddings
    top: int = number(5, 1)  # tokens for each mask


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """A trained model, that of the work directory, applied to texts."""

    stage: Literal["predict"] = "predict"
    infer: ApplyConfig = ApplyConfig()
    cache: str = ""  # see DataConfig


STAGES: dict[str, type] = {
    "pretrain": Config,
    "finetune": Config,
    "quickstart": QuickstartConfig,
    "convert": ConvertConfig,
    "compare": CompareConfig,
    "report": ReportConfig,
    "predict": PredictConfig,
    "ablate": AblateConfig,
    "search": SearchConfig,
}
