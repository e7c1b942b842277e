"""Linen modules: one Transformer encoder, whose settings are `config.ModelConfig`, and its heads."""
