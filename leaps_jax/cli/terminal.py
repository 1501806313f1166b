"""A command outlives the terminal and the pipes that it was started with."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from leaps_jax.progress import SIGNALS


@contextlib.contextmanager
def outlived() -> Iterator[None]:
    """Keeps a block running when nobody reads its output any more.

    What cannot be written to standard error is dropped. The signals that end a process
    raise KeyboardInterrupt, as Ctrl-C does, unless they are ignored (`nohup`).

    Standard output writes what its encoding lacks, or a name that is no UTF-8, as an
    escape.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(sys.stdout, io.TextIOWrapper):
            stack.callback(_on_error, sys.stdout, sys.stdout.errors)
            _on_error(sys.stdout, "backslashreplace")
        if sys.stderr is not None:
            stack.enter_context(contextlib.redirect_stderr(_Dropping(sys.stderr)))
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                with contextlib.suppress(ValueError):  # not the main thread
                    previous = signal.signal(number, signal.default_int_handler)
                    stack.callback(signal.signal, number, previous)
        yield


def _on_error(stream: io.TextIOWrapper, errors: str | None) -> None:
    with contextlib.suppress(OSError):  # it is flushed, and its reader may be dead
        stream.reconfigure(errors=errors)


def silence(stream: TextIO) -> None:
    """Redirects a stream to the null device, with what it still holds."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


class _Dropping:
    """A stream that drops what its reader, or the disk, does not take."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
