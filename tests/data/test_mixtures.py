from __future__ import annotations

import json

import numpy as np
import pytest
from letters import Letters

from lepton_jax.config import DataConfig
from lepton_jax.core.errors import UserError
from lepton_jax.data import mixtures
from lepton_jax.data.batches import training_batches
from lepton_jax.data.splits import load_splits

pytestmark = pytest.mark.once


@pytest.fixture
def config(tmp_path):
    """Two sources: long texts of capitals, and short ones of small letters."""
    draw = np.random.default_rng(0)
    for name, first, low, high in (("long", "A", 20, 60), ("short", "a", 2, 9)):
        texts = [
            "".join(chr(ord(first) + k) for k in draw.integers(0, 26, draw.integers(low, high))) for _ in range(120)
        ]
        (tmp_path / f"{name}.txt").write_text("\n\n".join([*texts, texts[0]]))
    return DataConfig(
        train=f"text:{tmp_path}/long.txt,text:{tmp_path}/short.txt", validation_share=0, cache=str(tmp_path / "cache")
    )


def encode(config, **changes):
    changed = DataConfig(**{**vars(config), **changes})
    return mixtures.encode(changed, load_splits(changed, None).train, Letters(), 16)


def test_the_report_counts_each_source(config):
    mixture, report = encode(config)
    assert mixture.sizes == (len(mixture.rows),) and mixture.weights == (1.0,)
    long, short = report["sources"]
    assert [each["source"] for each in report["sources"]] == config.train.split(",")
    assert long["documents"] == 120 and 110 < short["documents"] <= 120
    for each in report["sources"]:
        assert each["tokens"] == each["text_bytes"] + 2 * each["rows"]
        assert each["share_of_training"] == each["tokens"] / report["tokens"]
    for name in ("documents", "text_bytes", "rows", "tokens"):
        assert report[name] == long[name] + short[name]
    assert report["rows"] == len(mixture.rows) and report["tokens"] == mixture.rows.lengths.sum()
    _, padded = encode(config, batching="padded")
    assert padded["share_of_positions"] == pytest.approx(mixture.rows.lengths.mean() / 16)
    assert padded["share_of_positions"] < 0.8 < 0.95 < report["share_of_positions"] <= 1
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("pack", [False, True])
def test_weights_are_shares_of_the_tokens(config, pack):
    plain, _ = encode(config)
    mixture, report = encode(config, weights=(1.0, 3.0))
    assert [each["share_of_training"] for each in report["sources"]] == [0.25, 0.75]

    def share(mixture, streams):
        """Returns which part of the tokens that are no special ones is of the second source."""
        batches = training_batches(
            mixture.rows,
            32,
            16,
            pack=pack,
            seed=0,
            pad_id=0,
            sizes=mixture.sizes,
            weights=mixture.weights,
            streams=streams,
        )
        tokens = np.stack([next(batches)["token_ids"] for _ in range(100)])
        batches.close()
        small = np.where(tokens >= ord("a"), 1, 0).sum(axis=(0, 2))
        return small.reshape(streams, -1).sum(1) / (tokens > 3).sum(axis=(0, 2)).reshape(streams, -1).sum(1)

    # Specials count as tokens, and are a larger part of short texts.
    letters = [each["text_bytes"] / each["tokens"] for each in report["sources"]]
    expected = 0.75 * letters[1] / (0.25 * letters[0] + 0.75 * letters[1])
    for streams in (1, 4):
        np.testing.assert_allclose(share(mixture, streams), expected, atol=0.02)
    assert (share(plain, 1) < 0.3).all()


def test_a_source_without_text_of_its_own_has_no_weight(config):
    twice = config.train.split(",")[1]
    config = DataConfig(**{**vars(config), "train": f"{config.train},{twice}"})
    _, report = encode(config)
    assert report["sources"][2]["tokens"] == 0 < report["sources"][1]["tokens"]
    with pytest.raises(UserError, match=rf"^data\.train: {twice} gives no token that training may use, .*; leave it"):
        encode(config, weights=(1.0, 1.0, 1.0))
