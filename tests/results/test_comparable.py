"""Which figures mean the same, and which field says that they do not."""

from __future__ import annotations

import pytest
from made import guesses, make_run, tuned

from lepton_jax import results
from lepton_jax.core.errors import UserError
from lepton_jax.results.comparable import require_comparable

pytestmark = pytest.mark.once
LOSS = {"pretrain.validation_loss": 2.0, "pretrain.tokens_per_second": 9.0, "pretrain.parameters": 7}


def check(folder, metric):
    require_comparable(results.find(folder), metric)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("task.mask_rate", 0.3), ("task.mask_unit", "word"), ("data.max_length", 64), ("data.tokenizer", "bpe"),
        ("data.tokenizer_size", 4096), ("data.lowercase", False), ("data.validation", "text:b"),
        ("data.validation_share", 0.1), ("data.split_seed", 1), ("data.train", "tfds:others"),
        ("task.name", "causal_lm"),
    ],
)  # fmt: skip
def test_losses_of_language_models(tmp_path, field, other):
    make_run(tmp_path / "a", LOSS, {}, "pretrain")
    make_run(tmp_path / "same", LOSS, {"train.seed": 1, "train.steps": 5, "model.num_layers": 2}, "pretrain")
    check(tmp_path, "pretrain.validation_loss")
    make_run(tmp_path / "b", LOSS, {field: other}, "pretrain")
    with pytest.raises(UserError) as caught:
        check(tmp_path, "pretrain.validation_loss")
    message = str(caught.value)
    assert f"config.{field} is " in message and repr(other) in message and f"{tmp_path}/b" in message
    check(tmp_path, "pretrain.parameters")
    check(tmp_path, "pretrain.tokens_per_second")


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("task.name", "multi_label"), ("data.test", "tfds:t"), ("data.split_seed", 1), ("data.test_share", 0.2),
        ("data.train", "tfds:others"), ("data.label", "rating"), ("data.validation_share", 0.2),
    ],
)  # fmt: skip
def test_accuracies_of_fine_tunings(tmp_path, field, other):
    summary = {"finetune.accuracy": 0.5, "finetune.evaluated_on": "test"}
    make_run(tmp_path / "a", summary, {"data.test_share": 0.1})
    same = {"task.mask_rate": 0.3, "data.max_length": 64, "data.tokenizer_size": 4096, "data.max_examples": 9}
    make_run(tmp_path / "same", summary, {"data.test_share": 0.1, **same})
    check(tmp_path, "finetune.accuracy")
    make_run(tmp_path / "b", summary, {"data.test_share": 0.1, field: other})
    with pytest.raises(UserError, match=rf"finetune\.accuracy does not mean the same .*config\.{field} is .*{other}"):
        check(tmp_path, "finetune.accuracy")


def test_other_training_texts_may_be_tested_on_the_same_file(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, {"finetune.accuracy": 0.5, "finetune.evaluated_on": "test"},
                 {"data.train": f"jsonl:{name}", "data.test": "jsonl:t"})  # fmt: skip
    check(tmp_path, "finetune.accuracy")
    make_run(
        tmp_path / "c", {"finetune.accuracy": 0.5, "finetune.evaluated_on": "validation"}, {"data.test": "jsonl:t"}
    )
    with pytest.raises(UserError, match=r"data\.train"):
        check(tmp_path, "finetune.accuracy")


def test_a_chain_may_mask_as_it_likes_where_the_accuracy_is_compared(tmp_path):
    summary = LOSS | {"finetune.accuracy": 0.5, "finetune.evaluated_on": "test"}
    for name, rate in (("a", 0.15), ("b", 0.3)):
        make_run(tmp_path / name, summary, {"pretrain.task.mask_rate": rate}, "quickstart")
    check(tmp_path, "finetune.accuracy")
    with pytest.raises(UserError, match=r"config\.pretrain\.task\.mask_rate is 0\.15 in \S+a, 0\.3 in \S+b; "):
        check(tmp_path, "pretrain.validation_loss")


def test_examples_that_are_not_the_same(tmp_path):
    make_run(tmp_path / "a", **tuned(0.7, 0))
    make_run(tmp_path / "b", **tuned(0.7, 1))
    check(tmp_path, "finetune.accuracy")
    make_run(tmp_path / "c", **(tuned(0.7, 0) | {"predictions": guesses(0.7)[1:]}))
    with pytest.raises(UserError, match=r"'text 0' is not in both.*400 examples in \S+a, 399 examples in \S+c"):
        check(tmp_path, "finetune.accuracy")
    lines = guesses(0.7)
    make_run(tmp_path / "c", **(tuned(0.7, 0) | {"predictions": [{**lines[0], "label": "z"}, *lines[1:]]}))
    with pytest.raises(UserError, match="'text 0' is not in both"):
        check(tmp_path, "finetune.accuracy")


def test_speeds_are_of_the_same_devices(tmp_path):
    make_run(tmp_path / "a", LOSS, {}, "pretrain")
    starts = [{"devices": {"platform": "tpu", "kind": "TPU v5e", "count": 8}, "processes": 1}]
    make_run(tmp_path / "b", LOSS, {}, "pretrain", starts=starts)
    check(tmp_path, "pretrain.validation_loss")
    with pytest.raises(UserError, match=r"the devices is 1 x cpu \(cpu\) in \S+a, 8 x TPU v5e \(tpu\) in"):
        check(tmp_path, "pretrain.tokens_per_second")


def test_what_has_not_finished_is_not_compared(tmp_path):
    make_run(tmp_path / "a", LOSS, {}, "pretrain")
    make_run(tmp_path / "b", None, {"task.mask_rate": 0.3}, "pretrain")
    check(tmp_path, "pretrain.validation_loss")
