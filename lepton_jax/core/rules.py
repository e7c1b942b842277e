"""Rules of a config that give a number to the parameters whose paths match a pattern."""

from __future__ import annotations

import re

from lepton_jax.core.errors import UserError


def parse(rule: str, kind: type[int] | type[float], where: str) -> tuple[str, float]:
    """Returns (pattern, number) of "PATTERN=NUMBER"; the pattern may itself have a "=".

    Raises:
      UserError: there is no "=", the pattern is no regular expression, or the number is none of its kind, negative or
        not finite; `where` names the config field.
    """
    pattern, equals, text = rule.rpartition("=")
    form = f"must be PATTERN=NUMBER, such as '{'^embeddings/=100' if kind is int else '^embeddings/=0.1'}'"
    if not (equals and pattern):
        raise UserError(f"{where}={rule!r}: {form}")
    compiles(pattern, f"{where}={rule!r}")
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f"{where}={rule!r}: {text!r} is no {'whole ' * (kind is int)}number; {form}") from None
    if not 0 <= value < float("inf"):
        raise UserError(f"{where}={rule!r}: {text} must be 0 or more, and finite")
    return pattern, value


def compiles(pattern: str, where: str) -> None:
    """Raises UserError, which begins with `where`, for what is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}: not a regular expression ({error})") from None
