"""Where every parameter lies, pinned."""

import json
from pathlib import Path

import pytest

from lepton_jax.config import ModelConfig
from lepton_jax.core import sharding, trees
from lepton_jax.core.errors import UserError
from lepton_jax.models.partitioning import RULES
from lepton_jax.models.transformer import Transformer, abstract_params

GOLDEN = Path(__file__).parent / "partition_specs.json"
# A model with every kind of parameter that there is.
CONFIG = ModelConfig(
    vocab_size=64, hidden_size=16, embedding_size=8, num_layers=2, num_heads=2, intermediate_size=32, max_positions=8,
    type_vocab_size=2, positions="learned", gated=True, relative=("c2p", "p2c"), relative_span=4, relative_shared=False,
    tied_head=False,
)  # fmt: skip


def places():
    """Returns path -> PartitionSpec, as a list, of the parameters of every head."""
    mesh, found = sharding.make_mesh("fsdp=2,tensor=2,sequence=2"), {}
    for head, outputs in (("masked_lm", 0), ("classification", 4), ("replaced_token", 0)):
        specs = sharding.shardings(abstract_params(Transformer(CONFIG, head, outputs)), mesh, RULES)
        trees.map_with_path(lambda path, where: found.update({path: list(where.spec)}), specs)
    return dict(sorted(found.items()))


def test_every_parameter_has_its_pinned_place():
    """Update the file together with a rule that was meant to change, and for no other reason."""
    assert places() == json.loads(GOLDEN.read_text())


def test_a_parameter_that_no_rule_covers_is_an_error():
    mesh = sharding.make_mesh("fsdp=8")
    params = {"layers": {"mystery": abstract_params(Transformer(CONFIG, "masked_lm"))["embeddings"]["token"]}}
    with pytest.raises(UserError, match="parameter layers/mystery: no rule covers it"):
        sharding.shardings(params, mesh, RULES)
