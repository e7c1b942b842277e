"""Every place that must know a task knows it: one that is forgotten would fail late, after training."""

from __future__ import annotations

from typing import get_args, get_type_hints

import jax.numpy as jnp
import pytest

from lepton_jax.config import CLASSIFIERS, LANGUAGE_MODELS, MAIN_METRICS, METRICS, QUALITY, Config, TaskConfig
from lepton_jax.core import sharding
from lepton_jax.evaluate.lines import KINDS
from lepton_jax.hub.purposes import LABELLED
from lepton_jax.infer.signature import TASKS
from lepton_jax.models.transformer import Head
from lepton_jax.plan import _AssumedTokenizer, head_of
from lepton_jax.tasks import make_task
from lepton_jax.train.forecast import abstract_batch

pytestmark = pytest.mark.once

NAMES = get_args(get_type_hints(TaskConfig)["name"])
LABELS = tuple(KINDS)


def test_each_name_is_of_a_language_model_or_of_a_task_with_labels():
    assert sorted(NAMES) == sorted((*LANGUAGE_MODELS, *LABELS)) and len(NAMES) >= 6
    assert set(METRICS) == set(MAIN_METRICS) == set(NAMES)
    assert all(MAIN_METRICS[name] in METRICS[name] for name in NAMES)


def test_each_task_with_labels_is_measured_loaded_and_predicted():
    assert set(QUALITY) == set(LABELS) and set(CLASSIFIERS) <= set(LABELS) <= set(TASKS)
    assert sorted(task for tasks in LABELLED.values() for task in tasks) == sorted(LABELS)
    assert all(QUALITY[name] in METRICS[name] for name in LABELS)


@pytest.mark.parametrize("name", NAMES)
def test_each_task_is_made_with_the_head_that_its_model_gets(name):
    config = TaskConfig(name=name)
    labels = ("O", "B-a", "I-a") if name == "token_classification" else ("a", "b")
    task = make_task(config, _AssumedTokenizer(64), labels=labels)
    assert task.head == head_of(config) and task.head in get_args(Head)


@pytest.mark.parametrize("name", LABELS)
def test_each_task_with_labels_has_them_in_a_dry_run(name):
    config = Config(stage="finetune", task=TaskConfig(name=name))
    batch = abstract_batch(config, sharding.make_mesh("data=-1"), 3)
    assert batch["labels"].dtype in (jnp.int32, jnp.float32)
