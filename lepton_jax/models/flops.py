"""The arithmetic of a model: how many FLOPs its matrix products take, by its shapes alone."""

from __future__ import annotations

from lepton_jax.models.transformer import Transformer


def forward_flops(model: Transformer, length: int, scored: int) -> float:
    """Returns the FLOPs of the matrix products of a forward pass over one row, a multiply-add counted as two.

    Counted is what the model's mathematics needs (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): of attention
    the pairs of positions that causality and windows let through, whatever a backend computes besides, of rows that are
    full and hold one document; nothing that is computed a second time to save memory. A training step needs three times
    as much: the backward pass has two products for each one here.

    Args:
      model: its config, head and number of outputs count.
      length: positions of the row, T.
      scored: positions that a language-model head scores; other heads do not ask.
    """
    config = model.config
    T, D, E = length, config.hidden_size, config.embedding_size or config.hidden_size
    linear = T * (4 * D * D + (3 if config.gated else 2) * D * config.intermediate_size)

    def pairs(window: int) -> int:
        """Returns how many (query, key) attend to each other, no more than a window apart."""
        reach = min(window, T - 1)
        one_side = reach * T - reach * (reach + 1) // 2
        return T + (1 if config.causal else 2) * one_side

    local_layers = sum(number % config.global_every != 0 for number in range(config.num_layers))
    attention = 2 * D * (local_layers * pairs(config.local_window) + (config.num_layers - local_layers) * pairs(T))
    # Each kind: the table's projection, and every query (or key) with the row of every distance.
    relative = len(config.relative) * config.num_layers * (2 * config.relative_span * D * D + T * (2 * T - 1) * D)
    total = config.num_layers * linear + attention + relative + (T * E * D if config.embedding_size else 0)

    dense = 0 if config.pooler == "none" else D * D
    if model.head in ("masked_lm", "causal_lm"):
        total += scored * (E * config.vocab_size + (D * E if config.head_transform else 0))
    elif model.head == "replaced_token":
        total += T * (D * D + D)
    elif model.head == "token_classification":
        total += T * ((dense if config.pooler == "transform" else 0) + D * model.num_outputs)
    elif model.head != "none":
        total += dense + (D * model.num_outputs if model.head == "classification" else 0)
    return 2.0 * total
