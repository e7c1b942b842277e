"""Which backend a case gets, and what is said where the wanted one cannot serve it."""

import dataclasses

import pytest

from lepton_jax.config import ModelConfig
from lepton_jax.core.errors import UserError
from lepton_jax.models.attention import backends_of
from lepton_jax.models.backends import BACKENDS, choose
from lepton_jax.models.backends.case import Case

CPU = Case("cpu", 512, 64, "float32")
TABLE = [
    (CPU, {}, "xla"),
    (CPU, {"window": 64}, "banded"),
    (CPU, {"window": 64, "length": 256}, "xla"),
    (CPU, {"window": 128}, "xla"),
    (CPU, {"window": 64, "bias": True}, "xla"),
    (CPU, {"window": 64, "split": True}, "xla"),
]


@pytest.mark.parametrize(("base", "changes", "expected"), TABLE)
def test_the_choice(base, changes, expected):
    case = dataclasses.replace(base, **changes)
    assert choose(case) == expected
    assert BACKENDS[expected].refuses(case) is None


REFUSED = [
    (CPU, {"window": 64, "bias": True}, "banded", "takes no relative positions .*; choose 'xla', or 'auto'"),
    (CPU, {"window": 64, "split": True}, "banded", "needs all positions of a row on one device"),
]


@pytest.mark.parametrize(("base", "changes", "wanted", "message"), REFUSED)
def test_one_that_cannot_says_why_and_what_can(base, changes, wanted, message):
    with pytest.raises(UserError, match=f"config.finetune.model.attention='{wanted}': .*{message}"):
        choose(dataclasses.replace(base, **changes), wanted, "config.finetune")


def test_layers_without_a_window_leave_blocks_to_others():
    assert choose(CPU, "banded") == "xla"
    config = ModelConfig(vocab_size=64, global_every=3, max_positions=512)
    assert list(backends_of(config, 512, True, None).values()) == ["banded", "xla"]
    with pytest.raises(UserError, match=r"is for windows, and model\.global_every=1 has none; choose 'xla'"):
        backends_of(ModelConfig(attention="banded"), 128, True, None)
