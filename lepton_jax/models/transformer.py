"""The Transformer encoder: embeddings, a scanned stack of blocks, a head."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lepton_jax.config import ModelConfig
from lepton_jax.models.attention import SelfAttention, rotary_angles
from lepton_jax.models.embeddings import Embeddings
from lepton_jax.models.feed_forward import FeedForward
from lepton_jax.models.heads import ClassificationHead, MaskedLMHead
from lepton_jax.models.layers import make_norm

Head = Literal["none", "masked_lm", "classification"]

# What the backward pass keeps of a block's forward pass; `None` keeps nothing but the block's input.
REMAT_POLICIES: dict[str, Any] = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


class Block(nn.Module):
    """Self-attention and feed-forward, each with a residual connection.

    The norm comes before each of them (Xiong et al. 2020, arXiv:2002.04745) or after the sum, as in BERT.
    """

    config: ModelConfig
    train: bool

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, segments_BxT: jax.Array, angles_BxTxR: jax.Array | None
    ) -> tuple[jax.Array, None]:
        config = self.config
        dropout = nn.Dropout(config.dropout, deterministic=not self.train)
        for name, layer in (("attention", SelfAttention(config, name="attention")),
                            ("feed_forward", FeedForward(config, name="feed_forward"))):  # fmt: skip
            norm = make_norm(config, f"{name}_norm")
            arguments: Any = (segments_BxT, angles_BxTxR) if name == "attention" else ()
            if config.norm_position == "pre":
                x_BxTxD = x_BxTxD + dropout(layer(norm(x_BxTxD), *arguments))
            else:
                x_BxTxD = norm(x_BxTxD + dropout(layer(x_BxTxD, *arguments)))
        return x_BxTxD, None


class Transformer(nn.Module):
    """The encoder with one of the heads.

    Parameters: `embeddings`, `layers` (every leaf has a leading axis num_layers), `final_norm` (if pre-norm), `head`.
    """

    config: ModelConfig
    head: Head = "none"
    num_outputs: int = 0  # classes of the classification head; 1 for regression

    @nn.compact
    def __call__(
        self,
        token_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        token_type_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        predict: jax.Array | None = None,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """Encodes a batch.

        Args:
          token_ids: int32 [B, T].
          attention_mask: int32 [B, T]; 0 is padding, and positions with the same other value attend to each other,
            so that 1 everywhere is one document a row and 1, 1, 2, 2, 2, 0 are two packed ones. None: no padding.
          token_type_ids: int32 [B, T], where the model has token types; None: all 0.
          positions: int32 [B, T], of a token within its document; None: 0, 1, 2, ...
          predict: int32 [B, N], the positions that the masked-LM head scores; None: all of them.
          train: whether dropout is active; it then needs the rng stream "dropout".

        Returns:
          `hidden` [B, T, D]; with the masked-LM head `logits` [B, N or T, V]; with the classification head
          `logits` [B, num_outputs] and `pooled` [B, D]. All in the dtype of the model.
        """
        config = self.config
        B, T = token_ids.shape
        segments_BxT = jnp.ones((B, T), jnp.int32) if attention_mask is None else attention_mask.astype(jnp.int32)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None, :], (B, T))
        angles_BxTxR = None
        if config.positions == "rotary":
            angles_BxTxR = rotary_angles(positions, config.hidden_size // config.num_heads, config.rotary_base)

        embeddings = Embeddings(config, name="embeddings")
        x_BxTxD = embeddings(token_ids, positions, token_type_ids).astype(config.dtype)
        x_BxTxD = nn.Dropout(config.dropout, deterministic=not train)(x_BxTxD)

        block: Any = Block
        if config.remat != "none":
            # Under scan, XLA cannot merge the second computation with the first: no need to prevent it.
            block = nn.remat(Block, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
        scan: Any = nn.scan  # its stub knows fewer kinds of axes than it takes
        layers = scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=config.num_layers,
            unroll=config.unroll or config.num_layers,
        )
        x_BxTxD, _ = layers(config, train, name="layers")(x_BxTxD, segments_BxT, angles_BxTxR)
        if config.norm_position == "pre":
            x_BxTxD = make_norm(config, "final_norm")(x_BxTxD)

        out = {"hidden": x_BxTxD}
        if self.head == "masked_lm":
            x_BxNxD = x_BxTxD if predict is None else jnp.take_along_axis(x_BxTxD, predict[:, :, None], axis=1)
            out["logits"] = MaskedLMHead(config, name="head")(x_BxNxD, embeddings.table())
        elif self.head == "classification":
            head = ClassificationHead(config, self.num_outputs, train, name="head")
            out["logits"], out["pooled"] = head(x_BxTxD, segments_BxT)
        return out


def init_params(model: Transformer, key: jax.Array) -> dict[str, Any]:
    """Returns freshly initialised parameters: nested dicts of float32 arrays."""
    variables: Any = model.init(key, jnp.zeros((1, 2), jnp.int32))
    return variables["params"]


def abstract_params(model: Transformer) -> dict[str, Any]:
    """Returns the shapes and dtypes of the parameters, without computing anything."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
