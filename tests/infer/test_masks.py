from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import infer
from lepton_jax.config import InferConfig
from lepton_jax.core.errors import UserError
from lepton_jax.infer import masks
from lepton_jax.infer.predictor import Predictor
from lepton_jax.infer.programs import of

SMALL = InferConfig((8,), (1, 4), 1)


@pytest.fixture(scope="module")
def predictor(make_bundle):
    return infer.from_bundle(make_bundle("masked_lm", ()), config=SMALL)


def likeliest(bundle, ids, place, count=5):
    """Returns the likeliest tokens that are no special ones, by the model itself, and their probabilities."""
    logits = bundle.model.apply({"params": bundle.params}, jnp.asarray(ids)[None])["logits"][0, place]
    tokenizer = bundle.tokenizer
    chances = np.asarray(jax.nn.softmax(logits[: tokenizer.vocab_size]))
    special = {tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id}
    best = [number for number in np.argsort(-chances).tolist() if number not in special][:count]
    return [tokenizer.decode([number]) for number in best], chances[best]


def test_each_mask_gets_its_likeliest_tokens(make_bundle, predictor):
    bundle, text = make_bundle("masked_lm", ()), "ab [MASK] de[MASK]"
    (found,) = predictor([text])
    assert [text[each["start"] : each["end"]] for each in found["masks"]] == ["[MASK]", "[MASK]"]
    assert [each["start"] for each in found["masks"]] == [3, 12] and list(found) == ["masks"]
    encode = bundle.tokenizer.encode
    ids = np.concatenate([*encode(["ab"]), [bundle.tokenizer.mask_id], *encode([" de"]), [bundle.tokenizer.mask_id]])
    ids = bundle.tokenizer.with_specials(ids.astype(np.int32))
    places = np.flatnonzero(ids == bundle.tokenizer.mask_id)
    assert len(places) == 2 and len(ids) < 16
    for place, mask in zip(places, found["masks"], strict=True):
        tokens, chances = likeliest(bundle, ids, place)
        assert [each["token"] for each in mask["tokens"]] == tokens and len(set(tokens)) == 5
        np.testing.assert_allclose([each["score"] for each in mask["tokens"]], chances, rtol=1e-4)
    assert found["masks"][0]["tokens"] != found["masks"][1]["tokens"]


def test_the_vocabulary_ends_where_the_tokenizer_does(make_bundle):
    """Of 448 rows of the table some fill it up to a multiple of 64, and are no tokens."""
    bundle = make_bundle("masked_lm", ())
    size = bundle.tokenizer.vocab_size
    assert size < bundle.config.vocab_size
    (found,) = Predictor(of(bundle, top=size - 5), SMALL)(["[MASK]"])
    tokens = found["masks"][0]["tokens"]
    special = bundle.tokenizer.with_specials(np.array([bundle.tokenizer.mask_id], np.int32))
    wanted, chances = likeliest(bundle, special, 1, size)
    assert len(wanted) == len(tokens) == size - 5 and 0.5 < chances.sum() < 1
    np.testing.assert_allclose([each["score"] for each in tokens], chances, rtol=1e-3)
    for top in (0, size - 4):
        with pytest.raises(UserError, match=f"top={top}: must be from 1 to {size - 5}"):
            of(bundle, top=top)


def test_a_mask_of_a_long_text_is_seen_among_its_neighbours(make_bundle, predictor):
    bundle = make_bundle("masked_lm", ())
    before, after = " ".join(["abc"] * 30), " ".join(["gh de"] * 30)
    masked = masks.encode(bundle.tokenizer, [f"{before} [MASK] {after}"], 16)
    (ids,), (place,) = masked.ids, masked.places
    assert len(ids) == 16 and ids[place] == bundle.tokenizer.mask_id and 5 < place < 11
    (found,) = predictor([f"{before} [MASK] {after}"])
    assert [each["token"] for each in found["masks"][0]["tokens"]] == likeliest(bundle, ids, place)[0]
    assert "warning" not in found
    for text, at in ((f"[MASK] {after}", 1), (f"{before} [MASK]", 14)):
        masked = masks.encode(bundle.tokenizer, [text], 16)
        assert masked.places == [at] and len(masked.ids[0]) == 16


def test_spaces_before_a_mask_are_no_tokens():
    """A byte-level vocabulary would make a token of each, where the token that fills the mask begins with one."""
    seen = []

    class Letters:
        mask_id = 0

        def encode(self, texts):
            seen.extend(texts)
            return [np.array([ord(letter) for letter in text], np.int32) for text in texts]

        def with_specials(self, ids):
            return np.concatenate([[1], ids, [2]]).astype(np.int32)

    found = masks.encode(Letters(), ["I  [MASK] you [MASK]"], 16)  # pyright: ignore[reportArgumentType]
    assert seen == ["I", " you", ""] and found.places == [2, 7]


def test_texts_with_no_mask_or_too_many_are_told_so(predictor):
    none, many = predictor(["abc", "[MASK]" * 70])
    assert none == {"masks": [], "warning": "the text has no [MASK]"}
    assert len(many["masks"]) == 64 and many["warning"] == "filled were the first 64 of the text's 70 masks"


def test_a_tokenizer_without_a_mask_is_refused(make_bundle):
    class Without:
        mask_id = None

    with pytest.raises(UserError, match="the tokenizer has no token for masks"):
        masks.encode(Without(), ["[MASK]"], 16)  # pyright: ignore[reportArgumentType]


def test_what_a_filler_does_not_have_is_refused(predictor):
    for call in (predictor.scores, predictor.outputs):
        with pytest.raises(UserError, match="a filler of masks has none of whole texts; call it instead"):
            call(["a"])
    with pytest.raises(UserError, match="a filler of masks takes single texts"):
        predictor(["a [MASK]"], ["b"])
