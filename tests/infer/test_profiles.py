from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from lepton_jax import infer
from lepton_jax.config import InferConfig
from lepton_jax.core.errors import UserError
from lepton_jax.infer.profiles import Profile

pytestmark = pytest.mark.once

SMALL = InferConfig((8,), (4,), 1)
WORDS = ["abc", "de", "gh ij", "b", "kl m", "nop", "a", "fg"]


def make_texts(count: int, seed: int, words=WORDS) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(words, draw.integers(1, 5))) for _ in range(count)]


@pytest.fixture(scope="module")
def predictor(make_bundle):
    return infer.from_bundle(make_bundle(), config=SMALL)


@pytest.fixture(scope="module")
def profile(predictor) -> Profile:
    return infer.measure(predictor, make_texts(120, 0))


def test_a_profile_has_what_the_model_sees(predictor, profile):
    texts = make_texts(120, 0)
    assert profile.count == 120 and profile.predictor is predictor
    np.testing.assert_allclose(profile.confidence, np.sort(predictor.scores(texts).max(1)))
    assert list(profile.length) == sorted(map(len, predictor.tokenizer.encode(texts)))
    encoded = predictor.encode(texts)
    np.testing.assert_allclose(profile.mean, predictor.run(encoded.rows)[1].mean(0), atol=1e-5)
    model = predictor.program.forward.args[0]  # pyright: ignore[reportFunctionMemberAccess]
    out = model.apply({"params": predictor.params}, encoded.rows.ids[0][None])
    np.testing.assert_allclose(predictor.run(encoded.rows)[1][0], out["pooled"][0], atol=1e-5)


def test_texts_of_the_same_kind_are_near_and_others_far(profile):
    same, other = infer.drift(profile, make_texts(100, 1)), infer.drift(profile, ["gh ij nop " * 5] * 100)
    assert same["texts"] == other["texts"] == 100 and same["errors"] == 0
    for name in ("confidence", "length"):
        assert same[name]["p_value"] > 0.01 > 1e-6 > other[name]["p_value"]
        assert same[name]["distance"] < 0.25 < other[name]["distance"]
    assert same["embedding"]["distance"] < 2 * same["embedding"]["expected"] < 0.3 < other["embedding"]["distance"]
    assert infer.drift(profile, make_texts(120, 0))["embedding"]["distance"] == pytest.approx(0, abs=1e-6)


def test_distances_are_those_of_scipy(predictor, profile):
    texts = make_texts(40, 2, ["abc", "gh ij"])
    lengths = [len(ids) for ids in predictor.tokenizer.encode(texts)]
    test = stats.ks_2samp(profile.length, lengths)
    found = infer.drift(profile, texts)["length"]
    assert (found["distance"], found["p_value"]) == pytest.approx((test.statistic, test.pvalue))
    assert found["now"] == pytest.approx(np.mean(lengths)) and found["reference"] == pytest.approx(
        np.mean(profile.length)
    )


def test_the_distance_of_embeddings_is_in_deviations_of_the_reference(predictor, profile):
    texts = make_texts(40, 7, ["abc", "gh ij"])
    now = infer.measure(predictor, texts)
    assert np.abs(np.subtract(now.deviation, profile.deviation)).max() > 0.05
    shift = (np.array(now.mean) - np.array(profile.mean)) / np.array(profile.deviation)
    found = infer.drift(profile, texts)["embedding"]
    assert found["distance"] == pytest.approx(np.sqrt((shift**2).mean()), rel=1e-4)
    assert found["expected"] == pytest.approx(np.sqrt(1 / 120 + 1 / 40))


def test_unknown_tokens_are_counted(predictor, profile):
    assert predictor.tokenizer.unk_id is not None
    strange = dataclasses.replace(profile, unknown=(0.0,) * 50 + (1.0,) * 50)
    assert infer.drift(strange, make_texts(60, 3))["unknown"]["distance"] == pytest.approx(0.5)


def test_what_is_no_text_is_left_out(profile):
    found = infer.drift(profile, [*make_texts(30, 4), 3, "\ud800"])  # pyright: ignore[reportArgumentType]
    assert (found["texts"], found["errors"]) == (30, 2)
    with pytest.raises(UserError, match="a profile needs texts, and there are none"):
        infer.drift(profile, [3])  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"the profile is of no predictor; take predictor.profile"):
        infer.drift(dataclasses.replace(profile, predictor=None), ["a"])


def test_a_profile_comes_back_from_its_file(profile, tmp_path):
    profile.save(tmp_path)
    assert Profile.find(tmp_path) == profile and Profile.find(tmp_path / "elsewhere") is None
    tree = json.loads((tmp_path / "reference.json").read_text())
    for change in ({"mean": tree["mean"][1:]}, {"length": []}, {"confidence": [float("nan")]}, {"more": 1}):
        (tmp_path / "reference.json").write_text(json.dumps(tree | change))
        with pytest.raises(UserError, match=r"reference.json"):
            Profile.find(tmp_path)


@pytest.mark.parametrize(
    ("head", "labels"), [("token_classification", ("O", "B-A", "I-A")), ("none", ()), ("masked_lm", ())]
)
def test_models_of_every_task_have_a_profile(make_bundle, head, labels):
    predictor = infer.from_bundle(make_bundle(head, labels), config=SMALL)
    profile = infer.measure(predictor, make_texts(12, 5))
    assert profile.count == 12 and len(profile.mean) == 32
    assert infer.drift(profile, make_texts(12, 6))["embedding"]["distance"] > 0
