"""The sections of a config and their defaults, and what belongs to each task.

The dataclasses are the one source of truth: a field is declared, typed, bounded and explained once, here.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from lepton_jax.core.fields import number

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "squared_relu", "silu", "tanh", "mish"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The Transformer. Names follow `transformers` where it has one; the families of `hub/` are settings of it."""

    vocab_size: int = number(0, 0)  # 0: the tokenizer's size, rounded up to a multiple of 64
    hidden_size: int = number(256, 1)
    embedding_size: int = number(0, 0)  # 0: hidden_size; else a linear map follows the embeddings (ALBERT)
    num_layers: int = number(4, 1)
    num_layer_groups: int = number(0, 0)  # sets of parameters, shared by consecutive layers (ALBERT); 0: one a layer
    num_heads: int = number(4, 1)
    intermediate_size: int = number(1024, 1)
    max_positions: int = number(512, 2)  # the longest sequence, special tokens included; rows of a learned table
    type_vocab_size: int = number(0, 0)  # token types ("segments" in BERT's paper); 0: none

    norm: Literal["layer", "rms"] = "layer"
    norm_position: Literal["pre", "post"] = "pre"
    norm_epsilon: float = number(1e-6, 0, 1, "low high")
    norm_bias: bool = True
    embedding_norm: bool = True
    first_norm: bool = True  # pre-norm: False leaves out the norm before the first attention (ModernBERT)

    positions: Literal["learned", "rotary", "none"] = "rotary"
    position_offset: int = number(0, 0)  # first row used of a learned table; padding has the row before it (RoBERTa)
    rotary_base: float = number(10_000.0, 1)
    causal: bool = False  # a position attends to itself and to earlier ones alone
    global_every: int = number(1, 1)  # layers 0, n, 2n, ... attend to all positions, the others to a window
    local_window: int = number(64, 1)  # positions to each side in the window of a local layer
    local_rotary_base: float = number(10_000.0, 1)  # of a local layer
    # Disentangled attention (DeBERTa): how content attends to relative positions ("c2p") and they to it ("p2c").
    relative: tuple[str, ...] = ()
    relative_span: int = number(256, 1)  # the table has a row for each of -span .. span - 1
    relative_max_distance: int = number(0, 0)  # 0: each distance has a row; else beyond span / 2 in log-spaced buckets
    relative_shared: bool = True  # the table is projected by the content's key and query; False: by its own
    relative_norm: bool = True

    activation: Activation = "gelu"
    gated: bool = False  # GLU feed-forward: act(x W_gate) * (x W_up) (Shazeer 2020, arXiv:2002.05202)
    bias: bool = True  # of the linear layers of a block
    dropout: float = number(0.0, 0, 1, "high")

    tied_head: bool = True  # the language-model head multiplies by the token embedding table
    head_transform: bool = True  # dense, activation and norm before the scores of a language-model head
    head_activation: Activation = "gelu"  # of that transform
    head_bias: bool = True  # of the dense layers in heads and pooler
    output_bias: bool = True  # of the last layer of a head
    pooling: Literal["mean", "cls", "last"] = "mean"
    pooler: Literal["dense", "transform", "none"] = "dense"  # of the pooled vector; "transform" ends in a norm
    pooler_activation: Activation = "tanh"

    initializer_range: float = number(0.02, 0, None, "low")
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters stay float32
    # What computes attention, see `models/backends`; "auto": what fits device, rows and dtype.
    # "int8" is for predictions alone.
    attention: Literal["auto", "xla", "banded", "cudnn", "triton", "splash", "int8"] = "auto"
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass computes again
    unroll: int = number(1, 0)  # layers per iteration of the scan over layers; 0: all of them
    init: str = ""  # a WORKDIR to start from; empty: random


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    name: Literal["masked_lm", "causal_lm", "classification", "multi_label", "token_classification", "regression"] = (
        "masked_lm"
    )
    # Of the three tasks with classes:
    label_smoothing: float = number(0.0, 0, 1, "high")  # share of a target that all classes get alike
    focal_gamma: float = number(0.0, 0)  # above 0: focal loss (Lin et al. 2017), which looks away from what is easy
    # What a class counts for: "none", 1; "balanced", n / (classes * its own n); or "LABEL=WEIGHT,...", the others 1.
    class_weights: str = "none"
    # Of masked_lm:
    mask_rate: float = number(0.15, 0, 1, "low high")
    mask_unit: Literal["token", "word", "span"] = "token"  # what is masked whole or not at all
    span_length: float = number(3.8, 1)  # mean length of a span, in tokens
    mask_token_share: float = number(0.8, 0, 1)  # of the predicted positions: replaced by [MASK]
    random_token_share: float = number(0.1, 0, 1)  # ... replaced by a random token; the rest stay


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources are `tfds:NAME[:SPLIT]`, `text:GLOB`, or a file after `jsonl:`, `csv:`, `tsv:`, `parquet:` or `conll:`;
    several by commas."""

    train: str = ""
    weights: tuple[float, ...] = ()  # pretrain: each train source's share of the tokens; empty: each text once an epoch
    validation: str = ""  # empty: the TFDS source's own split, else a seeded share of train
    test: str = ""  # likewise
    out_of_domain: str = ""  # finetune: further sources that the model is tested on, each by itself
    text: str = "text"  # the column with the text; of token_classification also one with a list of words
    pair: str = ""  # the column with a second text; empty: single texts
    label: str = "label"  # the column with the label
    validation_share: float = number(0.05, 0, 0.5, "high")
    test_share: float = number(0.0, 0, 0.5, "high")
    split_seed: int = number(0, 0)
    max_examples: int = number(0, 0)  # training examples kept, chosen by split_seed; 0: all
    min_characters: int = number(0, 0)  # of a training text; shorter ones are left out
    max_length: int = number(128, 4)  # tokens a row, special tokens included
    # Rows of a batch: "packed" holds several documents each, isolated from each other; "bucketed" one each, of about
    # equal lengths, padded to a quarter, half, three quarters or all of max_length; "padded" one each, all max_length.
    batching: Literal["packed", "bucketed", "padded"] = "packed"
    # pretrain, "packed": False lets tokens attend to all documents of their row, and their positions run on through it.
    # It is for comparison with trainings that pack so; what is predicted is the same.
    isolate: bool = True
    streams: int = number(1, 1)  # independent parts of the order, each giving its share of every batch's rows
    # "unigram", "bpe" or "char" to train one; a folder with one, or what `hub.load` takes, to reuse that.
    tokenizer: str = "unigram"
    tokenizer_size: int = number(8192, 300)
    byte_fallback: bool = True
    lowercase: bool = True
    cache: str = ""  # empty: $LEPTON_JAX_CACHE, else ~/.cache/lepton_jax


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    name: Literal["adamw", "sgd", "muon"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "linear"
    warmup_steps: int = number(0, 0)
    decay_share: float = number(0.2, 0, 1, "low")  # wsd: the last part of the steps, in which the rate falls
    beta1: float = number(0.9, 0, 1, "high")
    beta2: float = number(0.98, 0, 1, "high")
    epsilon: float = number(1e-8, 0, None, "low")
    momentum: float = number(0.9, 0, 1, "high")  # of sgd and muon, whose authors have 0.95
    weight_decay: float = number(0.01, 0)
    no_decay: tuple[str, ...] = (r"(^|/)bias$", r"(^|/)scale$")  # path patterns that weight decay spares
    # The next three may name layers apart, `layers_0/attention/query/kernel`; the first pattern that is found decides.
    frozen: tuple[str, ...] = ()  # path patterns that keep their values: no gradient, no optimizer state
    rates: tuple[str, ...] = ()  # "PATTERN=FACTOR": what the learning rate is multiplied by there
    unfreeze: tuple[str, ...] = ()  # "PATTERN=STEP": keeps its values up to that step
    layer_decay: float = number(1.0, 0, 1, "low")  # the rate of each layer over that of the one above it
    clip_norm: float = number(1.0, 0)  # of the global gradient norm; 0: no clipping


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int = number(1000, 1)
    batch_size: int = number(32, 1)  # rows a step, over all devices and accumulation steps
    ramp_share: float = number(0.0, 0, 1)  # of the steps: the first ones have a quarter, then half of the batch
    accumulate: int = number(1, 1)  # gradient accumulation: the batch in this many parts
    learning_rate: float = number(1e-3, 0)
    seed: int = number(0, 0)
    seeds: int = number(1, 1)  # finetune: so many runs, of seed, seed + 1, ..., reported together
    log_every: int = number(20, 1)
    profile: int = number(0, 0)  # steps, from the third one, that are traced for XProf into WORKDIR/profile
    wandb: str = ""  # a project of Weights & Biases that gets the metrics too, beside TensorBoard; empty: none
    max_skipped: int = number(10, 1)  # steps in a row without a finite loss and gradient, then back to a checkpoint
    max_rollbacks: int = number(3, 0)  # how often a run goes back before it stops


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Where a run computes, and as which one of several processes; the same run may go on elsewhere."""

    # Sizes of the axes data, fsdp, tensor, sequence; one may be -1: all devices that are left. "auto": what fits.
    shape: str = "data=-1"
    # Of several processes; what is left out comes from the environment, see `lepton_jax.processes`.
    coordinator: str = ""  # HOST:PORT of process 0
    processes: int = number(0, 0)  # how many there are; 1: this one alone, whatever the environment says
    process: int = number(-1, -1)  # which one this is, from 0
    timeout: float = number(300.0, 0, None, "low")  # seconds that a process waits for the others at the start
    workers: int = number(0, 0)  # processes that tokenise a large corpus; 0: as many as there are cores


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = number(200, 1)  # steps; the last step is always saved
    keep: int = number(1, 1)  # newest checkpoints kept; the best one is kept besides
    best: str = ""  # the validation metric that says which one is best, of METRICS; empty: that of MAIN_METRICS

    @property
    def metric(self) -> str:
        """The name of that metric; of a section by itself, without a task, the loss."""
        return self.best or "loss"


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    every: int = number(200, 1)
    batch_size: int = number(64, 1)
    patience: int = number(0, 0)  # evaluations in a row without a better `checkpoint.best` that end a run; 0: never
    baseline: bool = False  # finetune: train TF-IDF and a linear model on the same examples, for comparison


@dataclasses.dataclass(frozen=True)
class CompressConfig:
    method: Literal["none", "int8"] = "none"
    keep_float: tuple[str, ...] = ()  # path patterns of weights that are not quantised
    # How inputs of linear layers are rounded: each token by its own largest value, or all by one bound, from texts.
    inputs: Literal["dynamic", "absmax", "percentile", "mse"] = "dynamic"
    percentile: float = number(99.99, 50, 100, "low")  # of their magnitudes, for inputs="percentile"
    # SmoothQuant's alpha: how far outliers of channels go from inputs into weights; 0: not at all.
    smooth: float = number(0.0, 0, 1, "high")
    texts: int = number(256, 1)  # of the training data, that inputs are observed on
    # Quantisation-aware: train with weights and inputs rounded as they will be in int8. A bound of inputs is then seen,
    # and they are smoothed, before training, as `model.init` has them.
    aware: bool = False
    # What int8 may lose of QUALITY on validation: if it is more, no int8 model is written. 1: it is not looked at.
    max_drop: float = number(1.0, 0, 1)


@dataclasses.dataclass(frozen=True)
class InferConfig:
    """Each length with each batch size is a program, which is compiled once."""

    # Tokens that rows are padded to; the model's own length comes last. Empty: chosen by the lengths of the model's
    # validation texts, else 16, 32, 64, ...
    lengths: tuple[int, ...] = ()
    batch_sizes: tuple[int, ...] = (1, 8, 64)  # rows that batches are padded to
    devices: int = number(0, 0)  # of this process, each of which computes its share of a batch; 0: all
    # Of a batch, at most, so that longer rows are fewer; 0: on CPUs 512, so that what is computed stays in their caches
    # (there, twice as many batches as cores are computed at once); elsewhere any number.
    batch_tokens: int = number(0, 0)
    attention: Literal["auto", "int8"] = "auto"  # of an int8 model: its attention in floats, or in int8 as well
    texts: tuple[str, ...] = ()  # sentences that a run predicts at its end, for a person to look at


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: a stage and its sections."""

    stage: Literal["pretrain", "finetune"] = "pretrain"
    dry_run: bool = False  # compile, say what the run needs, and train nothing
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    compress: CompressConfig = CompressConfig()
    infer: InferConfig = InferConfig()

    @property
    def packs(self) -> bool:
        """Whether a row may hold several documents."""
        return self.data.batching == "packed"

    @property
    def isolates(self) -> bool:
        """Whether a row may hold several documents that do not see each other."""
        return self.packs and self.data.isolate


RAMP_PARTS = 4  # the smallest batch of a ramp is one of so many parts, see `train.ramp`

# The tasks of the stage "pretrain", which need no labels; each trains the model's head of its name.
LANGUAGE_MODELS = ("masked_lm", "causal_lm")

# The tasks whose labels are names: of a text, of any number of them a text, of parts of a text.
CLASSIFIERS = ("classification", "multi_label", "token_classification")

# What each task measures on validation data.
METRICS: dict[str, tuple[str, ...]] = {
    "masked_lm": ("loss", "accuracy"),
    "causal_lm": ("loss", "accuracy", "perplexity"),
    "classification": ("loss", "accuracy", "f1", "macro_f1", "micro_f1", "mcc", "auroc"),
    "multi_label": ("loss", "exact_match", "micro_f1", "macro_f1", "auroc"),
    "token_classification": ("loss", "precision", "recall", "f1"),
    "regression": ("loss", "mean_squared_error", "mean_absolute_error", "r2", "pearson", "spearman"),
}
MAIN_METRICS = {
    "masked_lm": "loss", "causal_lm": "loss", "classification": "accuracy", "multi_label": "micro_f1",
    "token_classification": "f1", "regression": "loss",
}  # fmt: skip
# What says in one number how good a model with labels is: the higher, the better.
QUALITY = {
    "classification": "accuracy", "multi_label": "micro_f1", "token_classification": "f1", "regression": "spearman"
}  # fmt: skip
LOWER_IS_BETTER = ("loss", "perplexity", "mean_squared_error", "mean_absolute_error")

# What a model that starts from another one may set for itself; its other settings are the other one's.
OWN_MODEL_FIELDS = ("dropout", "dtype", "attention", "remat", "unroll", "init")
