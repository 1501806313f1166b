"""The error of a user's mistake: one line with argument, value and remedy."""

import difflib
import re
from collections.abc import Iterable, Sequence

_LONGEST = 380  # characters of a message; the command writes its own name before it
_VALUE = 200  # of them for the value that is refused


class UserError(ValueError):
    """A mistake in what the caller gave; the message is complete and fits one line.

    The command prints it and exits with code 2; the library raises it.

    What it quotes may come from a file: characters that could steer a terminal are
    escaped, and the middle of a long message is left out.

    >>> raise UserError("steps=0: must be at least 1")
    Traceback (most recent call last):
    leaps_jax.errors.UserError: steps=0: must be at least 1
    """

    def __init__(self, message: object):
        super().__init__(printable(str(message), _LONGEST))


def printable(text: str, most: int = 120) -> str:
    r"""Text from a file or a user, for one line of a terminal.

    Args:
      text: anything; what is no printable character is written as in Python.
      most: characters of the result, which loses its middle if it is longer.

    >>> print(printable("red \x1b[31m\nnext"))
    red \x1b[31m\nnext
    >>> printable("abcdefghij", 7)
    'abc…hij'
    """
    if len(text) > 2 * most:  # escapes only make it longer
        text = text[:most] + text[-most:]
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def bad_argument(argument: str, value: object, reason: object) -> UserError:
    """The error of an argument.

    >>> print(bad_argument("stimulus", "a.mp4", "the file is empty; replace it"))
    stimulus='a.mp4': the file is empty; replace it
    """
    return UserError(f"{argument}={_quoted(str(value))}: {reason}")


def _quoted(value: str) -> str:
    """A value in quotes, escaped once, without the middle of a long one."""
    text = repr(value[:_VALUE] + value[-_VALUE:] if len(value) > 2 * _VALUE else value)
    return printable(text, _VALUE)


def last_line(message: str) -> str:
    r"""The last line of a library's message, without a part in brackets before it.

    >>> last_line("a.mov:\n[mov @ 0x55d0] moov atom not found\n")
    'moov atom not found'
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return re.sub(r"^(\[[^]]*\] ?)+", "", lines[-1]) if lines else ""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or a device ran out.

    XLA raises a RuntimeError of many kinds of words, NumPy and Python a MemoryError.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("no such axis"))
    (True, False)
    """
    if isinstance(error, RuntimeError):
        words = str(error).lower()
        return "resource_exhausted" in words or "out of memory" in words
    return isinstance(error, MemoryError)


def check_known(argument: str, name: str, known: Iterable[str]) -> None:
    """Raises UserError where a name is not among the known ones.

    >>> check_known("method", "leap", ["leaps", "deep_dream"])
    Traceback (most recent call last):
    leaps_jax.errors.UserError: method='leap': unknown; did you mean leaps?
    """
    known = list(known)
    if name not in known:
        raise UserError(f"{argument}={name!r}: unknown; {nearest(name, known)}")


def listed(what: str, items: Sequence[str], most: int = 10) -> str:
    """Counts items and lists the first of them, "" for none.

    >>> listed("tensors missing", ["a", "b", "c"], most=2)
    '3 tensors missing: a, b and 1 more'
    """
    if not items:
        return ""
    rest = len(items) - most
    shown = ", ".join(items[:most])
    return f"{len(items)} {what}: {shown}" + (f" and {rest} more" if rest > 0 else "")


def nearest(name: str, known: Iterable[str], most: int = 3) -> str:
    """Words for the end of an error message: the known names closest to `name`.

    >>> nearest("x3d-xs", ["x3d_xs", "x3d_s", "slow_r50"])
    'did you mean x3d_xs, x3d_s?'
    """
    known = list(known)
    folded = {k.lower().replace("-", "_").replace(" ", "_"): k for k in known}
    wanted = name.lower().replace("-", "_").replace(" ", "_")
    close = [folded[k] for k in difflib.get_close_matches(wanted, folded, most, 0.6)]
    if close:
        return f"did you mean {', '.join(close)}?"
    shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"known: {shown}"
