"""Combinators: what they multiply, pair and chain, and what they refuse."""

from __future__ import annotations

import pytest

from lepton_jax import sweeps
from lepton_jax.core.errors import UserError
from lepton_jax.sweeps import SEED, Variant, case, chain, product, seeds, vary

pytestmark = pytest.mark.once


def test_a_product_has_every_combination_in_order():
    found = product(vary("task.mask_rate", 0.15, 0.3), vary("model.gated", True, False), seeds(2, first=5))
    assert [variant.name for variant in found[:4]] == [
        "mask_rate 0.15, gated on", "mask_rate 0.15, gated on", "mask_rate 0.15, gated off", "mask_rate 0.15, gated off"
    ]  # fmt: skip
    assert [variant.changes[SEED] for variant in found] == [5, 6] * 4
    assert len({tuple(variant.changes.items()) for variant in found}) == 8
    assert found[-1].changes == {"task.mask_rate": 0.3, "model.gated": False, SEED: 6}


def test_zip_pairs_and_chain_appends():
    sizes = sweeps.zip(vary("model.hidden_size", 64, 128), vary("model.num_heads", 2, 4))
    assert [variant.changes for variant in sizes] == [
        {"model.hidden_size": 64, "model.num_heads": 2},
        {"model.hidden_size": 128, "model.num_heads": 4},
    ]
    both = chain(case("parent"), sizes)
    assert both == (Variant({}, "parent"), *sizes)
    assert product() == (Variant(),) and product(both, ()) == ()


def test_values_have_names_that_people_read():
    found = vary("x.size", 1000, 0.5, "post", False, (1, 2))
    assert [variant.name for variant in found] == ["size 1,000", "size 0.5", "size post", "size off", "size 1,2"]


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(UserError, match=r"train\.steps is set twice, to 5 and to 6"):
        product(vary("train.steps", 5), case("longer", {"train.steps": 6}))
    assert product(vary("train.steps", 5), case("same", {"train.steps": 5}))[0].changes == {"train.steps": 5}
    with pytest.raises(UserError, match="lists of 2, 3 variants; all must be equally long"):
        sweeps.zip(vary("a", 1, 2), vary("b", 1, 2, 3))
    with pytest.raises(UserError, match="has no values"):
        vary("task.mask_rate")
    with pytest.raises(UserError, match="1 at least"):
        seeds(0)
