"""A process with a disk of its own, on which a command meets what disks may do.

`python faulty_disk.py COMMAND ROOT FOLDER` prints for each case, as a line of JSON: its
name, the exit code and the words of the command on the bad disk, both on a good one,
and whether the result is that of a good disk alone. It needs `unshare -rm`: it mounts.
"""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from work import WORK, names, shrink

from leaps_jax import files
from leaps_jax.cli.main import main

SIZES = 10  # of a disk that gets full
PLENTY = 2**20  # KiB


def call(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True)


def sized(disk: Path, kibibytes: int, *remount: str) -> None:
    options = ",".join([*remount, f"size={kibibytes}k"])
    call("mount", "-t", "tmpfs", "-o", options, "tmpfs", disk)


def ran(words: list[str]) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    return code, said.getvalue()


def size(folder: Path) -> int:
    pages = [-(-p.stat().st_size // 4096) + 1 for p in folder.rglob("*")]
    return 4096 * sum(pages)


@contextlib.contextmanager
def at_write(number: int, do: Callable[[], None]) -> Iterator[None]:
    """Does something before the file of that number is written."""
    write, left = files.write_together, [number]

    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            do()
        write(*args, **kwargs)

    files.write_together = counted
    try:
        yield
    finally:
        files.write_together = write


@contextlib.contextmanager
def read_only(number: int, out: Path) -> Iterator[None]:
    """A folder that turns read-only: a view of it is laid over it."""

    laid = []

    def lay() -> None:
        laid.append(out)
        call("mount", "--bind", out, out)
        call("mount", "-o", "remount,bind,ro", out)

    with at_write(number, lay):
        yield
    for path in laid:
        call("umount", path)


def run(command: str, root: Path, folder: Path) -> None:
    work, disk = WORK[command], folder / "disk"
    disk.mkdir()
    shrink(command)

    def tried(name: str, kibibytes: int, fault: AbstractContextManager) -> None:
        sized(disk, kibibytes)
        words = work.words(root, disk / "out")
        with fault:
            bad = ran(words)
        sized(disk, PLENTY, "remount")
        good = ran(words)
        same = (work.result(disk / "out"), names(disk / "out")) == whole
        call("umount", disk)
        print(json.dumps([name, *bad, *good, same]), flush=True)

    assert ran(work.words(root, folder / "whole"))[0] == 0
    whole = (work.result(folder / "whole"), names(folder / "whole"))
    most = size(folder / "whole") >> 10
    for part in range(SIZES):
        room = 4 + most * part // SIZES
        tried(f"{room} kB", room, contextlib.nullcontext())
    for number in (1, 2, 4, 8):
        tried(f"read-only {number}", PLENTY, read_only(number, disk / "out"))
        removed = at_write(number, lambda: shutil.rmtree(disk / "out"))
        tried(f"removed {number}", PLENTY, removed)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
