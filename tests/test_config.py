from __future__ import annotations

import dataclasses
import json
import math

import pytest

from lepton_jax.config import (
    STAGES,
    Config,
    ModelConfig,
    QuickstartConfig,
    default_config,
    resolve,
    runs,
    to_dict,
)
from lepton_jax.core.errors import UserError
from lepton_jax.overrides import explain_override
from lepton_jax.workdir import flatten

pytestmark = pytest.mark.once

UNTRAINED = ("convert", "compare", "report", "predict")  # stages that train nothing


def recipe(base: str = "pretrain", /, **changes):
    """Returns a recipe that resolves, but for the changes: `section__field=value`."""
    config = default_config(base)
    if base == "convert":
        config.source = "runs/model"
    if base == "compare":
        config.a = config.b = "runs/model"
    if base == "report":
        config.runs = "runs/*"
    if base == "predict":
        config.infer.input, config.infer.output = "texts.txt", "predictions.jsonl"
    chain = (config.get("pretrain"), config.get("finetune"))
    for run in ({"quickstart": chain} | dict.fromkeys(UNTRAINED, ())).get(base, [config]):
        run.data.train = "text:corpus.txt"
        run.task.name = "classification" if run.stage == "finetune" else "masked_lm"
    tree = config.to_dict()
    for path, value in changes.items():
        *sections, name = path.split("__")
        node = tree
        for section in sections:
            node = node[section]
        node[name] = value
    return tree


def refusal(base: str = "pretrain", /, **changes) -> str:
    with pytest.raises(UserError) as caught:
        resolve(recipe(base, **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("stage", STAGES)
def test_defaults_resolve_to_themselves(stage):
    config = recipe(stage)
    resolved = resolve(config)
    assert isinstance(resolved, STAGES[stage]) and resolved.stage == stage
    for _, run in runs(resolved):
        assert run.model == ModelConfig() and run.optim.no_decay == Config().optim.no_decay
    chains = {"quickstart": ["config.pretrain", "config.finetune"]} | {name: [] for name in UNTRAINED}
    assert [where for where, _ in runs(resolved)] == chains.get(stage, ["config"])


def test_a_recipe_is_locked_and_typed():
    config = default_config()
    with pytest.raises(AttributeError, match="hidden_size"):
        config.model.hidden_sizes = 3
    with pytest.raises(TypeError):
        config.train.steps = "many"
    config.train.steps = 7
    config.data.train = "text:corpus.txt"
    assert resolve(config).train.steps == 7


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in UNTRAINED])
def test_to_dict_comes_back_from_json(stage):
    changes = {"quickstart": "finetune__optim__frozen"}.get(stage, "optim__frozen")
    resolved = resolve(recipe(stage, **{changes: ("embeddings",)}))
    tree = json.loads(json.dumps(to_dict(resolved)))
    assert tree == to_dict(resolved) and ["embeddings"] in flatten(tree).values()
    assert resolve(tree) == resolved != resolve(recipe(stage))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "pretran"}, "config.stage='pretran': unknown stage; did you mean \"pretrain\"?"),
        (
            {"stage": "xyz"},
            "config.stage='xyz': unknown stage; known: compare, convert, finetune, predict, pretrain, "
            "quickstart, report",
        ),
        ({"stage": ["pretrain"]}, "config.stage=['pretrain']: unknown stage; did you mean \"pretrain\"?"),
        ({"modle": {}}, 'config.modle: unknown field; did you mean "model"?'),
        ({"model__hiden_size": 8}, 'config.model.hiden_size: unknown field; did you mean "hidden_size"?'),
        (
            {"mesh__zzz": 8},
            "config.mesh.zzz: unknown field; known: coordinator, process, processes, shape, timeout, workers",
        ),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(change, message):
    assert refusal(**change) == message


def test_unknown_fields_of_a_quickstart_are_named_in_full():
    message = refusal("quickstart", finetune__train__step=8)
    assert message == 'config.finetune.train.step: unknown field; did you mean "steps"?'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train__steps": 1.5}, "config.train.steps=1.5: must be of type int, not float"),
        ({"train__steps": True}, "config.train.steps=True: must be of type int, not bool"),
        ({"train__steps": None}, "config.train.steps=None: must be of type int, not NoneType"),
        ({"train__learning_rate": "1e-3"}, "config.train.learning_rate='1e-3': must be of type float, not str"),
        ({"train__learning_rate": True}, "config.train.learning_rate=True: must be of type float, not bool"),
        ({"data__byte_fallback": 1}, "config.data.byte_fallback=1: must be of type bool, not int"),
        ({"data__train": 1}, "config.data.train=1: must be of type str, not int"),
        ({"model__norm": "batch"}, "config.model.norm='batch': must be one of 'layer', 'rms'"),
        ({"optim__frozen": "layers"}, "config.optim.frozen='layers': must be a tuple of str"),
        ({"infer__lengths": 16}, "config.infer.lengths=16: must be a tuple of int"),
        ({"infer__lengths": (16, "32")}, "config.infer.lengths=(16, '32'): must be a tuple of int"),
        ({"model": 3}, "config.model=3: must be a section with fields, not int"),
    ],
)
def test_wrong_types(change, message):
    assert refusal(**change) == message


def test_an_int_is_a_float_where_a_float_is_meant():
    rate = resolve(recipe(train__learning_rate=1)).train.learning_rate
    assert rate == 1.0 and isinstance(rate, float)


@pytest.mark.parametrize(
    ("field", "outside", "inside", "interval"),
    [
        ("train__steps", (0, -1), (1, 10**9), "[1, inf)"),
        ("model__dropout", (-0.1, 1.0, math.nan), (0.0, 0.999), "[0, 1)"),
        ("task__mask_rate", (0.0, 1.0), (1e-6, 0.999), "(0, 1)"),
        ("task__span_length", (0.9, math.nan), (1.0, 6.5), "[1, inf)"),
        ("task__mask_token_share", (-0.01, 1.01), (0.0, 0.9), "[0, 1]"),
        ("data__validation_share", (0.5,), (0.0, 0.49), "[0, 0.5)"),
        ("model__initializer_range", (0.0, math.inf), (1e-9, 5.0), "(0, inf)"),
        ("train__learning_rate", (-1e-9, math.inf, math.nan), (0.0, 1e9), "[0, inf)"),
        ("optim__decay_share", (0.0, 1.1), (0.1, 1.0), "(0, 1]"),
        ("data__tokenizer_size", (299,), (300,), "[300, inf)"),
    ],
)
def test_bounds(field, outside, inside, interval):
    path = field.replace("__", ".")
    for value in outside:
        assert refusal(**{field: value}) == f"config.{path}={value!r}: must be in {interval}"
    for value in inside:
        section, name = field.split("__")
        assert getattr(getattr(resolve(recipe(**{field: value})), section), name) == value


def test_every_number_has_a_lower_bound():
    """A count of -1 or a rate of -0.1 must not get past the config."""
    unbounded = [
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        if dataclasses.is_dataclass(section.default)
        for field in dataclasses.fields(section.default)
        if field.type in ("int", "float") and field.metadata.get("low") is None
    ]
    assert unbounded == []


CHECKS = {
    "heads divide the width": (
        "pretrain", {"model__hidden_size": 10, "model__num_heads": 3}, {"model__hidden_size": 12},
        "config.model.num_heads=3: must divide model.hidden_size=10"),
    "rotary heads are even": (
        "pretrain", {"model__hidden_size": 12, "model__num_heads": 4}, {"model__positions": "learned"},
        "config.model.num_heads=4: rotary positions need an even head size, not hidden_size / num_heads = 3"),
    "attention with a gradient": (
        "pretrain", {"model__attention": "int8"}, {"model__attention": "xla"},
        "config.model.attention='int8': has no gradient to train by; 'auto', and for predictions "
        "infer.attention='int8'"),
    "... in fine-tuning too": (
        "finetune", {"model__attention": "int8"}, {"model__attention": "auto"},
        "config.model.attention='int8': has no gradient to train by; 'auto', and for predictions "
        "infer.attention='int8'"),
    "int8 attention of an int8 model": (
        "finetune", {"infer__attention": "int8"}, {"compress__method": "int8"},
        "config.infer.attention='int8': is for compress.method='int8'"),
    "length fits the model": (
        "pretrain", {"data__max_length": 513}, {"data__max_length": 512},
        "config.data.max_length=513: longer than the model; at most model.max_positions=512"),
    "shares of masks": (
        "pretrain", {"task__random_token_share": 0.3}, {"task__mask_token_share": 0.7},
        "config.task.random_token_share=0.3: at most 1 - task.mask_token_share = 0.2"),
    "accumulation divides the batch": (
        "pretrain", {"train__accumulate": 3}, {"train__batch_size": 33},
        "config.train.accumulate=3: must divide train.batch_size=32"),
    "a ramp begins with a quarter": (
        "pretrain", {"train__ramp_share": 0.1, "train__batch_size": 30}, {"train__batch_size": 32},
        "config.train.ramp_share=0.1: a ramp begins with a quarter of the batch; train.batch_size=30 must be a "
        "multiple of 4"),
    "accumulation divides the smallest batch": (
        "pretrain", {"train__ramp_share": 0.1, "train__accumulate": 16}, {"train__ramp_share": 0.0},
        "config.train.accumulate=16: must divide a quarter of train.batch_size=32, where the ramp begins"),
    "warm-up ends": (
        "pretrain", {"optim__warmup_steps": 1001}, {"train__steps": 1001},
        "config.optim.warmup_steps=1001: at most train.steps=1000"),
    "a source": (
        "pretrain", {"data__train": ""}, {"data__train": "text:a"},
        "config.data.train='': name a source, such as text:corpus/*.txt or jsonl:train.jsonl"),
    "pretraining's task": (
        "pretrain", {"task__name": "classification"}, {"task__name": "masked_lm"},
        "config.task.name='classification': the stage 'pretrain' trains 'masked_lm' or 'causal_lm'"),
    "a causal model for a causal task": (
        "pretrain", {"task__name": "causal_lm"}, {"model__causal": True},
        "config.model.causal=False: must be True for the task 'causal_lm', or the model sees what it is to predict"),
    "fine-tuning is no language model": (
        "finetune", {"task__name": "causal_lm"}, {"task__name": "classification"},
        "config.task.name='causal_lm': the stage 'finetune' trains one of 'classification', 'multi_label',"),
    "pretraining's compression": (
        "pretrain", {"compress__method": "int8"}, {"compress__method": "none"},
        "config.compress.method='int8': the stage 'pretrain' writes no int8 model; compress after fine-tuning"),
    "pretraining's start": (
        "pretrain", {"model__init": "runs/a"}, {"model__init": ""},
        "config.model.init='runs/a': the stage 'pretrain' starts from random weights"),
    "fine-tuning's task": (
        "finetune", {"task__name": "masked_lm"}, {"task__name": "regression"},
        "config.task.name='masked_lm': the stage 'finetune' trains one of 'classification', 'multi_label',"),
    "the best checkpoint's metric": (
        "finetune", {"checkpoint__best": "f2"}, {"checkpoint__best": "f1"},
        "config.checkpoint.best='f2': the task 'classification' measures 'loss', 'accuracy', 'f1', 'macro_f1',"),
    "a regression has no accuracy": (
        "finetune", {"checkpoint__best": "accuracy", "task__name": "regression"}, {"checkpoint__best": "loss"},
        "config.checkpoint.best='accuracy': the task 'regression' measures 'loss'"),
    "one stream of buckets": (
        "finetune", {"data__batching": "bucketed", "data__streams": 2, "train__batch_size": 32}, {"data__streams": 1},
        "config.data.streams=2: must be 1 with data.batching='bucketed'"),
    "no growing batch of buckets": (
        "finetune", {"data__batching": "bucketed", "train__ramp_share": 0.1}, {"train__ramp_share": 0.0},
        "config.train.ramp_share=0.1: a batch that grows has no buckets; data.batching='packed' or 'padded'"),
    "language models have no buckets": (
        "pretrain", {"data__batching": "bucketed"}, {"data__batching": "padded"},
        "config.data.batching='bucketed': language models take 'packed', 'padded'"),
    "pretraining has no pairs": (
        "pretrain", {"data__pair": "b"}, {"data__pair": ""}, "config.data.pair='b': is for the stage 'finetune'"),
    "pretraining has one seed": (
        "pretrain", {"train__seeds": 2}, {"train__seeds": 1}, "config.train.seeds=2: is for the stage 'finetune'"),
    "pairs have no spans": (
        "finetune", {"data__pair": "b", "task__name": "token_classification"}, {"data__pair": ""},
        "config.data.pair='b': is for whole texts, not for 'token_classification'"),
    "smoothing is for classes": (
        "finetune", {"task__label_smoothing": 0.1, "task__name": "regression"}, {"task__label_smoothing": 0.0},
        "config.task.label_smoothing=0.1: is for 'classification', 'multi_label', 'token_classification', not for"),
    "a bucket fits the model": (
        "finetune", {"infer__lengths": (16, 256)}, {"infer__lengths": (16, 128)},
        "config.infer.lengths=(16, 256): longer than the model's rows; at most data.max_length=128"),
    "a batch has rows": (
        "finetune", {"infer__batch_sizes": ()}, {"infer__batch_sizes": (4,)},
        "config.infer.batch_sizes=(): must have a number of rows, such as 64"),
    "batches increase": (
        "predict", {"infer__batch_sizes": (8, 0)}, {"infer__batch_sizes": (1, 8)},
        "config.infer.batch_sizes=(8, 0): must be increasing numbers, each at least 1"),
    "there is something to predict": (
        "predict", {"infer__input": ""}, {"infer__input": "-"},
        "config.infer.input='': name a file with texts, such as texts.txt, or set config.infer.texts"),
    "predictions have a place": (
        "predict", {"infer__output": ""}, {"infer__input": "", "infer__output": "", "infer__texts": ("a",)},
        "config.infer.output='': name the file that gets the predictions, such as predictions.jsonl"),
    "shown texts have no file": (
        "predict", {"infer__input": "", "infer__texts": ("a",)}, {"infer__input": "a.txt", "infer__texts": ("a",)},
        "config.infer.output='predictions.jsonl': is for config.infer.input; config.infer.texts are shown"),
    "a file of a known form": (
        "predict", {"infer__input": "a.docx"}, {"infer__input": "a.parquet"},
        "config.infer.input='a.docx': must end in .txt, .jsonl, .csv, .tsv, .parquet, or be '-'"),
    "lines have no pairs": (
        "predict", {"infer__pair": "b"}, {"infer__pair": "b", "infer__input": "a.csv"},
        "config.infer.pair='b': lines of text have no second ones; take .jsonl or .csv"),
    "buckets increase": (
        "finetune", {"infer__lengths": (32, 16)}, {"infer__lengths": (16, 32)},
        "config.infer.lengths=(32, 16): must be increasing numbers, each at least 4"),
    "buckets differ": (
        "finetune", {"infer__lengths": (16, 16)}, {"infer__lengths": (16,)},
        "config.infer.lengths=(16, 16): must be increasing numbers, each at least 4"),
    "buckets hold a text": (
        "finetune", {"infer__lengths": (3, 16)}, {"infer__lengths": (4, 16)},
        "config.infer.lengths=(3, 16): must be increasing numbers, each at least 4"),
    "a weight has its class": (
        "finetune", {"task__class_weights": "spam=4,ham"}, {"task__class_weights": "spam=4,a=b=0.5"},
        "config.task.class_weights='spam=4,ham': must be LABEL=NUMBER,LABEL=NUMBER; 'ham' is not"),
    "a class has one weight": (
        "finetune", {"task__class_weights": "spam=4,spam=1"}, {"task__class_weights": "balanced"},
        "config.task.class_weights='spam=4,spam=1': names 'spam' twice"),
    "a weight is finite": (
        "finetune", {"task__class_weights": "spam=inf"}, {"task__class_weights": "spam=1e3"},
        "config.task.class_weights='spam=inf': inf must be 0 or more, and finite"),
    "a rate is a rule": (
        "finetune", {"optim__rates": ("head=2", "embeddings")}, {"optim__rates": ("head=2",)},
        "config.optim.rates='embeddings': must be PATTERN=NUMBER, such as '^embeddings/=0.1'"),
    "the step of a rule is whole": (
        "finetune", {"optim__unfreeze": ("layers=1.5",)}, {"optim__unfreeze": ("layers=1",)},
        "config.optim.unfreeze='layers=1.5': '1.5' is no whole number; must be PATTERN=NUMBER, such as"),
    "what thaws, thaws before the end": (
        "finetune", {"optim__unfreeze": ("layers=50",), "train__steps": 50}, {"optim__unfreeze": ("layers=49",)},
        "config.optim.unfreeze='layers=50': its step must be from 1 to 49"),
    "no_decay": (
        "pretrain", {"optim__no_decay": ("bias", "(")}, {"optim__no_decay": ("bias",)},
        "config.optim.no_decay='(': not a regular expression ("),
    "frozen": (
        "pretrain", {"optim__frozen": ("[",)}, {"optim__frozen": ("layers",)},
        "config.optim.frozen='[': not a regular expression ("),
    "keep_float": (
        "finetune", {"compress__keep_float": ("*",)}, {"compress__keep_float": ("head",)},
        "config.compress.keep_float='*': not a regular expression ("),
    "a form of int8 inputs without int8": (
        "finetune", {"compress__inputs": "mse"}, {"compress__method": "int8"},
        "config.compress.inputs='mse': is for compress.method='int8'"),
    "a gate without int8": (
        "finetune", {"compress__max_drop": 0.01}, {"compress__method": "int8"},
        "config.compress.max_drop=0.01: is for compress.method='int8'"),
    "aware of int8 without int8": (
        "finetune", {"compress__aware": True}, {"compress__method": "int8"},
        "config.compress.aware=True: is for compress.method='int8'"),
    "aware of steps that nothing was observed for": (
        "finetune", {"compress__aware": True, "compress__method": "int8", "compress__inputs": "mse"},
        {"model__init": "runs/a"}, "config.compress.aware=True: needs a model.init to observe inputs in, or"),
    "aware of smoothing that nothing was observed for": (
        "finetune", {"compress__aware": True, "compress__method": "int8", "compress__smooth": 0.5},
        {"compress__smooth": 0.0}, "config.compress.aware=True: needs a model.init to observe inputs in, or"),
    "stages of a chain": (
        "quickstart", {"pretrain__stage": "finetune", "pretrain__task__name": "classification"},
        {"pretrain__stage": "pretrain", "pretrain__task__name": "masked_lm"},
        "config.pretrain.stage='finetune': must be 'pretrain'"),
    "start of a chain": (
        "quickstart", {"finetune__model__init": "runs/a"}, {"finetune__model__init": ""},
        "config.finetune.model.init='runs/a': a quickstart starts from its own pretraining"),
    "dry run of a link in a chain": (
        "quickstart", {"finetune__dry_run": True}, {"finetune__dry_run": False},
        "config.finetune.dry_run=True: is for the whole chain; set config.dry_run"),
    "one architecture in a chain": (
        "quickstart", {"pretrain__model__hidden_size": 128}, {"finetune__model__hidden_size": 128},
        "config.finetune.model.hidden_size=256: must equal config.pretrain.model.hidden_size=128"),
    "checks reach into a chain": (
        "quickstart", {"finetune__train__accumulate": 3}, {"finetune__train__accumulate": 2},
        "config.finetune.train.accumulate=3: must divide train.batch_size=32"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_fields_that_do_not_fit_together(name):
    stage, wrong, mended, message = CHECKS[name]
    assert refusal(stage, **wrong).startswith(message)
    resolve(recipe(stage, **{**wrong, **mended}))


def test_a_chain_may_be_aware_of_steps_for_it_fine_tunes_what_it_pretrained():
    form = {
        "finetune__compress__method": "int8",
        "finetune__compress__inputs": "mse",
        "finetune__compress__aware": True,
    }
    assert resolve(recipe("quickstart", **form)).finetune.compress.aware


def test_a_chain_shares_its_architecture_and_nothing_else():
    changes = {"finetune__model__dropout": 0.3, "pretrain__model__remat": "full"}
    resolved = resolve(recipe("quickstart", **changes))
    assert isinstance(resolved, QuickstartConfig) and resolved.finetune.model.dropout != resolved.pretrain.model.dropout


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.hiden_size", "8", 'config.model.hiden_size: unknown field; did you mean "hidden_size"?'),
        ("pretrain.model.biass", "1", 'config.pretrain.model.biass: unknown field; did you mean "bias"?'),
        ("modle.hidden_size", "8", 'config.modle: unknown field; did you mean "model"?'),
        ("stage.name", "8", "config.stage.name: unknown field; it has no fields of its own"),
        ("model.hidden_size", "abc", "config.model.hidden_size='abc': must be of type int"),
        ("finetune.train.learning_rate", "abc", "config.finetune.train.learning_rate='abc': must be of type float"),
        ("model.hidden_size", "8", "config.model.hidden_size: not a field of this recipe; a quickstart has "
                                   "config.pretrain.model.hidden_size or config.finetune.model.hidden_size"),
        ("mesh", "8", "config.mesh='8': is a section; set one of its fields: "
                      "shape, coordinator, processes, process, timeout, workers"),
    ],
)  # fmt: skip
def test_an_override_that_cannot_be_applied_is_explained(path, value, message):
    assert explain_override(path, value) == message
