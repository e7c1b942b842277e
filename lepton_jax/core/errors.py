"""The one exception for mistakes that the person running the code can mend."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in a config, a file or a command; its message is one line: what, where, what would be right.

    `lepton_jax.main` prints the message alone and exits with code 2. In a notebook it is a ValueError.
    """

    everywhere = False  # whether all processes of a run have raised it, see `lepton_jax.processes`


def nearest(name: str, known: list[str]) -> str:
    """Returns a hint such as `did you mean "width"?`, or the known names where none is near."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'did you mean "{close[0]}"?' if close else f"known: {', '.join(sorted(known))}"
