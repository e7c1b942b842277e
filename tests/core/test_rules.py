"""PATTERN=NUMBER, and what is said of everything else."""

import pytest

from lepton_jax.core import rules
from lepton_jax.core.errors import UserError


@pytest.mark.parametrize(
    ("rule", "kind", "wanted"),
    [
        ("^embeddings/=0.1", float, ("^embeddings/", 0.1)),
        ("head=0", float, ("head", 0.0)),
        ("layers_0/=1e-3", float, ("layers_0/", 1e-3)),
        ("(?=embeddings)=2", float, ("(?=embeddings)", 2.0)),
        ("layers_11/=100", int, ("layers_11/", 100)),
    ],
)
def test_a_rule_is_a_pattern_and_a_number(rule, kind, wanted):
    found = rules.parse(rule, kind, "field")
    assert found == wanted and isinstance(found[1], kind)


@pytest.mark.parametrize(
    ("rule", "kind", "message"),
    [
        ("embeddings", float, r"^field='embeddings': must be PATTERN=NUMBER, such as '\^embeddings/=0\.1'$"),
        ("embeddings", int, r"^field='embeddings': must be PATTERN=NUMBER, such as '\^embeddings/=100'$"),
        ("=3", float, r"^field='=3': must be PATTERN=NUMBER"),
        ("a=", float, r"^field='a=': '' is no number; must be PATTERN=NUMBER"),
        ("a=slow", float, r"^field='a=slow': 'slow' is no number; must be"),
        ("a=0.5", int, r"^field='a=0\.5': '0\.5' is no whole number; must be"),
        ("a=-1", float, r"^field='a=-1': -1 must be 0 or more, and finite$"),
        ("a=inf", float, "inf must be 0 or more, and finite"),
        ("a=nan", float, "nan must be 0 or more, and finite"),
        ("a(=1", float, r"^field='a\(=1': not a regular expression \("),
    ],
)
def test_what_is_no_rule_is_refused(rule, kind, message):
    with pytest.raises(UserError, match=message):
        rules.parse(rule, kind, "field")
