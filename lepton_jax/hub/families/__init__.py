"""The families of checkpoints that `hub.load` reads and `hub.save` writes, one file each."""

from lepton_jax.hub.families import albert, bert, deberta, distilbert, electra, gpt2, modernbert, roberta
from lepton_jax.hub.families.family import Family, Tensor

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        bert.FAMILY,
        roberta.FAMILY,
        roberta.XLM_FAMILY,
        distilbert.FAMILY,
        electra.FAMILY,
        albert.FAMILY,
        deberta.FAMILY,
        modernbert.FAMILY,
        gpt2.FAMILY,
    )
}

__all__ = ["FAMILIES", "Family", "Tensor"]
