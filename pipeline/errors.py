"""The one error that users see, and the suggestion that goes with it."""

from collections.abc import Iterable
from difflib import get_close_matches


class SluiceError(Exception):
    """Something the user can mend: one line that names the value, what was expected and the remedy.

    The command line prints it without a traceback and exits with 2.
    """


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'x'?"`, or the choices when nothing is near, or nothing when there are none."""
    known = sorted(set(choices))
    near = get_close_matches(value, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    if not known:
        return ""
    shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"; there are: {shown}"
