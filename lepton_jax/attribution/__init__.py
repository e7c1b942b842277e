"""What a model looks at: what its heads attend to, and what each word adds to an output; drawn on the text."""

from lepton_jax.attribution.attention import AttentionMaps, attention_maps
from lepton_jax.attribution.drawing import as_html, draw_head, draw_heads, draw_words
from lepton_jax.attribution.gradients import Attribution, integrated_gradients

__all__ = [
    "AttentionMaps",
    "Attribution",
    "as_html",
    "attention_maps",
    "draw_head",
    "draw_heads",
    "draw_words",
    "integrated_gradients",
]
