from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.data.identity import fraction, normalise, split_of


def test_normalise_ignores_case_width_and_white_space_and_nothing_else():
    assert normalise("  \uff28ello\u00a0 WORLD\n") == normalise("hello world") == "hello world"
    assert normalise("Straße") == normalise("STRASSE")
    assert normalise("hello world!") != normalise("hello world")


@settings(deadline=None, max_examples=50)
@given(st.text(), st.integers(0, 2**32))
def test_fraction_is_a_function_of_key_and_normalised_text(text, seed):
    assert 0 <= fraction(text, str(seed)) < 1
    assert fraction(text, str(seed)) == fraction(f" {text} ", str(seed)) == fraction(normalise(text), str(seed))


def test_split_of_gives_each_split_its_share_and_another_key_another_split():
    shares = {"validation": 0.1, "test": 0.2, "train": 0.7}
    texts = [f"text {number}" for number in range(5000)]
    first = [split_of(text, shares, "a") for text in texts]
    for name, share in shares.items():
        assert abs(np.mean([split == name for split in first]) - share) < 0.02
    second = [split_of(text, shares, "b") for text in texts]
    assert 0.4 < np.mean([a == b for a, b in zip(first, second, strict=True)]) < 0.65  # 0.54 if independent
    assert split_of("text 0", {"test": 0.0, "train": 1.0}, "a") == "train"
