"""What no case may do: take long, or much memory, or ask the network."""

import contextlib
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS = 60
MEMORY = 2**31  # bytes
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")

#: Who asked for an address since this was last emptied.
asked: list[str] = []
#: Names that lead to the listener, where they are taken for addresses, and those of
#: them that may be files of a folder.
addresses: list[str] = []
files: list[str] = []


def _hear(event: str, arguments: tuple) -> None:
    """Python says of each connection where it leads; a local socket has no address."""
    if event == "socket.getaddrinfo" or (
        event == "socket.connect" and isinstance(arguments[1], tuple)
    ):
        asked.append(f"{event} {arguments[1:]}")


sys.addaudithook(_hear)  # which stays


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Hears who asks an address of `addresses` or any proxy, and turns all away.

    This is for other processes, FFmpeg above all; `_hear` hears this one.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def turn_away() -> None:
            while True:
                try:
                    connection, address = server.accept()
                except OSError:  # it was shut down
                    return
                asked.append(f"a connection from {address}")
                connection.close()

        thread = threading.Thread(target=turn_away)
        thread.start()
        host = f"127.0.0.1:{server.getsockname()[1]}"
        before = {name: os.environ.get(name) for name in _PROXIES}
        os.environ |= dict.fromkeys(_PROXIES, f"http://{host}")
        files[:] = [f"{scheme}://{host}/x.mp4" for scheme in ("http", "tcp", "rtmp")]
        addresses[:] = [*files, f"http:/{host}/x.mp4", f"//{host}/x", host]
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Holds a block to `SECONDS` and `MEMORY`, and to no word with the network."""

    def late(*_: object) -> None:
        raise AssertionError(f"a case took more than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    before, children, began = _forget_peak(), _children(), time.monotonic()
    asked.clear()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - began < SECONDS
    taken = _status("VmHWM") - before
    assert taken < MEMORY, f"a case took {taken >> 20} MiB"
    if _children() > children:  # else a process before this case took more
        taken = _children() - before  # a new process counts what its parent holds
        assert taken < MEMORY, f"a process of a case took {taken >> 20} MiB"
    assert not asked, f"a case asked the network: {asked}"


def _children() -> int:
    """The most bytes that any process took that this one started."""
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def _forget_peak() -> int:
    """Starts the measure of the peak anew; returns the bytes that are held now."""
    with contextlib.suppress(OSError):  # else it is the peak since the start
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """A size in bytes from the system's word on this process, 0 where it has none."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0
