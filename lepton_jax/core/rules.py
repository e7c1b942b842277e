"""Rules of a config that give numbers: to the parameters whose paths match a pattern, or to names."""

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
    return pattern, _number(text, kind, f"{where}={rule!r}", form)


def weights(text: str, where: str) -> dict[str, float]:
    """Returns name -> number of "NAME=NUMBER,NAME=NUMBER"; a name may itself have a "=", but no comma.

    Raises:
      UserError: a part has no "=", names what another part names, or its number is none, negative or not finite.
    """
    found: dict[str, float] = {}
    form = "must be LABEL=NUMBER,LABEL=NUMBER"
    for part in text.split(","):
        name, equals, number = part.strip().rpartition("=")
        if not (equals and name):
            raise UserError(f"{where}={text!r}: {form}; {part!r} is not")
        if name in found:
            raise UserError(f"{where}={text!r}: names {name!r} twice")
        found[name] = _number(number, float, f"{where}={text!r}", form)
    return found


def _number(text: str, kind: type[int] | type[float], where: str, form: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f"{where}: {text!r} is no {'whole ' * (kind is int)}number; {form}") from None
    if not 0 <= value < float("inf"):
        raise UserError(f"{where}: {text} must be 0 or more, and finite")
    return value


def compiles(pattern: str, where: str) -> None:
    """Raises UserError, which begins with `where`, for what is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}: not a regular expression ({error})") from None
