"""The Transformer: embeddings, a scanned stack of blocks, a head."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lepton_jax.config import ModelConfig
from lepton_jax.core.sharding import ROW_AXES, constrain
from lepton_jax.models.attention import Context, SelfAttention, rotation
from lepton_jax.models.backends.case import Rows
from lepton_jax.models.embeddings import Embeddings, default_positions
from lepton_jax.models.feed_forward import FeedForward
from lepton_jax.models.heads import LanguageModelHead, OutputHead, ReplacedTokenHead, make_pooler, pool, pool_documents
from lepton_jax.models.layers import Dropout, make_norm

Head = Literal["none", "pooler", "masked_lm", "causal_lm", "replaced_token", "classification", "token_classification"]

# What the backward pass keeps of a block's forward pass; `None` keeps nothing but the block's input.
REMAT_POLICIES: dict[str, Any] = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


class Block(nn.Module):
    """Self-attention and feed-forward, each with a residual connection.

    The norm comes before each of them (Xiong et al. 2020, arXiv:2002.04745) or after the sum, as in BERT.
    """

    config: ModelConfig
    train: bool
    keep: bool

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, kind: dict[str, Any], context: Context
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the output, and again if `keep`, for a scan to stack.

        `kind` has a bool [] for each way in which this layer may differ from the others, known now or at run time.
        """
        config = self.config
        dropout = Dropout(config.dropout, self.train)
        for name, layer in (("attention", SelfAttention(config, name="attention")),
                            ("feed_forward", FeedForward(config, name="feed_forward"))):  # fmt: skip
            norm = make_norm(config, f"{name}_norm")
            arguments: Any = (context, kind.get("local")) if name == "attention" else (context.mesh,)
            if config.norm_position == "pre":
                normed_BxTxD = norm(x_BxTxD)
                if name == "attention" and "first" in kind:
                    normed_BxTxD = jnp.where(kind["first"], x_BxTxD, normed_BxTxD)
                x_BxTxD = x_BxTxD + dropout(layer(normed_BxTxD, *arguments))
            else:
                x_BxTxD = norm(x_BxTxD + dropout(layer(x_BxTxD, *arguments)))
        x_BxTxD = constrain(x_BxTxD, context.mesh, ROW_AXES, "sequence", None)
        return x_BxTxD, x_BxTxD if self.keep else None


class LayerGroup(nn.Module):
    """Layers that share one set of parameters, as in ALBERT (Lan et al. 2019, arXiv:1909.11942, section 3.1)."""

    config: ModelConfig
    train: bool
    keep: bool
    block: Any

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, kind: dict[str, Any], context: Context
    ) -> tuple[jax.Array, jax.Array | None]:
        scan: Any = nn.scan
        layers = scan(
            self.block,
            variable_broadcast="params",
            variable_axes={"inputs": 0, "attention": 0},
            split_rngs={"params": False, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=self.config.num_layers // self.config.num_layer_groups,
        )
        return layers(self.config, self.train, self.keep, name="shared")(x_BxTxD, kind, context)


class Transformer(nn.Module):
    """The Transformer with one of the heads.

    Parameters: `embeddings`, `layers` (every leaf has a leading axis num_layers, or num_layer_groups), `final_norm`
    (if pre-norm), `relative` (if the model has relative positions), `pooler` and `head` (where the head has them).
    `mutable=["attention"]` of `apply` also gives what every head attends to, see `attribution.attention_maps`.
    """

    config: ModelConfig
    head: Head = "none"
    num_outputs: int = 0  # classes of a text or token; 1 for regression
    mesh: Mesh | None = None  # see `on`; without one XLA puts activations where it likes

    def on(self, mesh: Mesh) -> Transformer:
        """Returns the model that spreads its activations over a mesh: rows over `data` and `fsdp`, positions over
        `sequence`, heads, the inner features of feed-forward layers and vocabularies over `tensor`."""
        return self.clone(mesh=mesh if mesh.size > 1 else None)

    @nn.compact
    def __call__(
        self,
        token_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        token_type_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        predict: jax.Array | None = None,
        documents: int | None = None,
        packed: bool = True,
        train: bool = False,
        hidden_states: bool = False,
    ) -> dict[str, jax.Array]:
        """Encodes a batch.

        Args:
          token_ids: int32 [B, T].
          attention_mask: int32 [B, T]; 0 is padding, and positions with the same other value attend to each other,
            so that 1 everywhere is one document a row and 1, 1, 2, 2, 2, 0 are two packed ones. None: no padding.
          token_type_ids: int32 [B, T], where the model has token types; None: all 0.
          positions: int32 [B, T], of a token within its document; None: 0, 1, 2, ... (`default_positions`).
          predict: int32 [B, N], the positions that a language-model head scores; None: all of them.
          documents: how many documents of a row, numbered 1, 2, ... in `attention_mask`, get a pooled vector and logits
            of their own; None: a row gets one.
          packed: False promises that a row is one document and padding only at its right; attention may then be faster.
          train: whether dropout is active; it then needs the rng stream "dropout".
          hidden_states: whether those of every layer are returned.

        Returns:
          `hidden` [B, T, D]; with a language-model head `logits` [B, N or T, V]; with "classification" `logits`
          [B, num_outputs] and `pooled` [B, D] (or [B, documents, ...]), which "pooler" gives alone; with
          "token_classification" `logits`
          [B, T, num_outputs]; with "replaced_token" `logits` [B, T]. If asked for, `hidden_states` [1 + num_layers, B,
          T, D]: the input of the first layer and the output of each, the last of them being `hidden`. All in the dtype
          of the model.
        """
        config = self.config
        B, T = token_ids.shape
        segments_BxT = jnp.ones((B, T), jnp.int32) if attention_mask is None else attention_mask.astype(jnp.int32)
        if positions is None:
            positions = default_positions(token_ids, config.position_offset)
        embeddings = Embeddings(config, self.mesh, name="embeddings")
        first_BxTxD = embeddings(token_ids, positions, token_type_ids)
        first_BxTxD = Dropout(config.dropout, train)(first_BxTxD)
        first_BxTxD = constrain(first_BxTxD, self.mesh, ROW_AXES, "sequence", None)
        rows: Rows = "full" if attention_mask is None else "packed" if packed else "padded"
        context = Context(segments_BxT, mesh=self.mesh, rows=rows)
        x_BxTxD, states_LxBxTxD = self._layers(first_BxTxD, context, positions, train, keep=hidden_states)
        x_BxTxD = make_norm(config, "final_norm")(x_BxTxD) if config.norm_position == "pre" else x_BxTxD

        out = {"hidden": x_BxTxD}
        if states_LxBxTxD is not None:
            out["hidden_states"] = jnp.concatenate([first_BxTxD[None], states_LxBxTxD[:-1], x_BxTxD[None]])
        if self.head in ("masked_lm", "causal_lm"):
            x_BxNxD = x_BxTxD if predict is None else jnp.take_along_axis(x_BxTxD, predict[:, :, None], axis=1)
            out["logits"] = LanguageModelHead(config, self.mesh, name="head")(x_BxNxD, embeddings.table)
        elif self.head == "replaced_token":
            out["logits"] = ReplacedTokenHead(config, name="head")(x_BxTxD)
        elif self.head == "token_classification":
            x_BxTxD = make_pooler(config)(x_BxTxD) if config.pooler == "transform" else x_BxTxD
            out["logits"] = OutputHead(config, self.num_outputs, train, name="head")(x_BxTxD)
        elif self.head != "none":
            pools = pool if documents is None else partial(pool_documents, documents=documents)
            pooled = pools(x_BxTxD, segments_BxT, config.pooling)
            out["pooled"] = pooled if config.pooler == "none" else make_pooler(config)(pooled)
            if self.head == "classification":
                out["logits"] = OutputHead(config, self.num_outputs, train, name="head")(out["pooled"])
        return out

    def _layers(
        self, x_BxTxD: jax.Array, context: Context, positions: jax.Array, train: bool, keep: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the hidden states after all blocks [B, T, D] and, if `keep`, after each [num_layers, B, T, D]."""
        config = self.config
        if config.positions == "rotary":
            size = config.hidden_size // config.num_heads
            context = context.replace(rotation=rotation(positions, size, config.rotary_base))
            if config.global_every > 1:
                local = rotation(positions, size, config.local_rotary_base)
                context = context.replace(local_rotation=local)
        if config.relative:
            context = context.replace(relative_PxD=RelativeEmbeddings(config, name="relative")().astype(config.dtype))

        depth = config.num_layer_groups or config.num_layers
        kind: dict[str, np.ndarray] = {}  # how a layer differs from the others, if any does: bool [depth]
        if config.global_every > 1:
            kind["local"] = np.arange(depth) % config.global_every != 0
        if not config.first_norm:
            kind["first"] = np.arange(depth) == 0

        block: Any = Block
        if config.remat != "none":
            # Under scan, XLA cannot merge the second computation with the first: no need to prevent it.
            block = nn.remat(Block, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
        options: dict[str, Any] = {"block": block} if config.num_layer_groups else {}
        layer: Any = LayerGroup if config.num_layer_groups else block
        if "layers_0" in self.variables.get("params", {}):  # see `unstack`
            states = []
            for number in range(depth):
                own = {name: flags[number] for name, flags in kind.items()}
                apply = layer(config, train, keep, name=f"layers_{number}", **options)
                x_BxTxD, state = apply(x_BxTxD, own, context)
                states.append(state)
            states = jnp.stack(states) if keep else None
        else:
            scan: Any = nn.scan  # its stub knows fewer kinds of axes than it takes
            layers = scan(
                layer,
                variable_axes={"params": 0, "inputs": 0, "attention": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast),
                length=depth,
                unroll=config.unroll or depth,
            )
            x_BxTxD, states = layers(config, train, keep, name="layers", **options)(x_BxTxD, kind, context)
        return x_BxTxD, None if states is None else states.reshape(config.num_layers, *x_BxTxD.shape)


class RelativeEmbeddings(nn.Module):
    """The table of relative positions [2 * relative_span, D], normalised if the model says so."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        config = self.config
        init = nn.initializers.truncated_normal(config.initializer_range)
        table_PxD = self.param("table", init, (2 * config.relative_span, config.hidden_size), jnp.float32)
        return make_norm(config, "norm")(table_PxD) if config.relative_norm else table_PxD


def init_params(model: Transformer, key: jax.Array) -> dict[str, Any]:
    """Returns freshly initialised parameters: nested dicts of float32 arrays."""
    variables: Any = model.clone(mesh=None).init(key, jnp.zeros((1, 2), jnp.int32))
    return variables["params"]


def unstack(params: dict[str, Any]) -> dict[str, Any]:
    """Returns the same parameters with an entry a layer, `layers_0`, `layers_1`, ..., in place of the stack `layers`.

    A model applies them without taking slices of a stack, which copies every weight: at a batch of one that is a third
    of the time. In return it is compiled layer by layer.
    """
    stack = params["layers"]
    depth = jax.tree.leaves(stack)[0].shape[0]
    rest = {name: part for name, part in params.items() if name != "layers"}
    return rest | {f"layers_{number}": jax.tree.map(lambda leaf: leaf[number], stack) for number in range(depth)}  # noqa: B023


def abstract_params(model: Transformer) -> dict[str, Any]:
    """Returns the shapes and dtypes of the parameters, without computing anything."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
