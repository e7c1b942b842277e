"""Slices: every example is in one slice of each kind, and its metrics are those of the slice alone."""

import numpy as np
import pytest

from lepton_jax.evaluate.slices import by_slice

pytestmark = pytest.mark.once


def test_each_kind_of_slice_parts_the_examples():
    draw = np.random.default_rng(0)
    lengths, right = draw.integers(1, 100, 80).tolist(), draw.random(80) < 0.5
    labels = [("a", "b")[number] for number in draw.integers(0, 2, 80)]
    rows = by_slice(lambda chosen: {"accuracy": float(right[chosen].mean())}, lengths=lengths, labels=labels,
                    sources=["x"] * 60 + ["y"] * 20)  # fmt: skip
    assert {row["slice"] for row in rows} == {"length", "label", "source"}
    for kind in ("length", "label", "source"):
        own = [row for row in rows if row["slice"] == kind]
        assert sum(row["examples"] for row in own) == 80
        np.testing.assert_allclose(sum(row["examples"] * row["accuracy"] for row in own), right.sum())
    quarters = [row["value"] for row in rows if row["slice"] == "length"]
    assert len(quarters) == 4 and [int(value.split("-")[0]) for value in quarters] == sorted(
        int(value.split("-")[0]) for value in quarters
    )
    assert all(15 <= row["examples"] <= 25 for row in rows if row["slice"] == "length")


def test_one_source_and_one_length_are_no_slices():
    rows = by_slice(lambda chosen: {"n": len(chosen)}, lengths=[3, 3, 3], labels=None, sources=["x"] * 3)
    assert rows == []
