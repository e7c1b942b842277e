from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.config import InferConfig
from lepton_jax.core.errors import UserError
from lepton_jax.infer.predictor import Predictor
from lepton_jax.infer.programs import of

SMALL = InferConfig((8,), (1, 4), 1)
TEXTS = ["abc de", "", "gh", "abc def gh ij kl", "b"]


def hidden(bundle, text) -> np.ndarray:
    ids = bundle.tokenizer.with_specials(bundle.tokenizer.encode([text])[0])
    return np.asarray(bundle.model.apply({"params": bundle.params}, jnp.asarray(ids)[None])["hidden"][0], np.float64)


@pytest.mark.parametrize("head", ["none", "classification", "masked_lm"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_an_embedding_is_the_pooled_hidden_states_of_length_1(make_bundle, head, pooling):
    bundle = make_bundle(head, ("bad", "fair", "good") if head == "classification" else ())
    predictor = Predictor(of(bundle, task="embedding", pooling=pooling), SMALL)
    pools = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "last": lambda x: x[-1]}
    expected = np.stack([pools[pooling](hidden(bundle, text)) for text in TEXTS])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = predictor(TEXTS)
    np.testing.assert_allclose([each["embedding"] for each in found], expected, atol=1e-5)
    np.testing.assert_allclose(predictor.scores(TEXTS), expected, atol=1e-5)
    assert np.abs(expected @ expected.T - 1).max() > 0.01
    assert [each.get("warning") for each in found] == [None, "the text is empty", None, None, None]


def test_what_an_encoder_is_for_is_told_by_its_head(make_bundle):
    assert of(make_bundle("none", ())).signature.task == "embedding"
    assert of(make_bundle("masked_lm", ())).signature.task == "masked_lm"
    assert of(make_bundle()).signature.task == "classification"
    assert of(make_bundle("causal_lm", (), causal=True), task="embedding").signature.task == "embedding"
    with pytest.raises(UserError, match="the head 'causal_lm' and predicts no labels; fine-tune it first, or take"):
        of(make_bundle("causal_lm", (), causal=True))
    with pytest.raises(UserError, match="task='masked_lm': the model's head is for 'classification'; take that, or"):
        of(make_bundle(), task="masked_lm")
    with pytest.raises(UserError, match="task='translate': must be one of 'classification', "):
        of(make_bundle(), task="translate")
    with pytest.raises(UserError, match="pooling='max': must be mean, cls or last"):
        of(make_bundle(), task="embedding", pooling="max")  # pyright: ignore[reportArgumentType]
