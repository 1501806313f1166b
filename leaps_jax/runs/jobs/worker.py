"""A worker of a run on several machines: some devices of one of them, and one process.

It keeps its models and compiled steps, and writes the files of rows itself. Of three
batches one is decoded and compiled, one is on the devices, one is written; the model
that comes next is loaded and compiled beside them. Clips are decoded in threads of its
own, unless an engine has other places for that.
"""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

from leaps_jax.errors import UserError
from leaps_jax.progress import Stop
from leaps_jax.runs.jobs import batches, pipeline
from leaps_jax.runs.jobs.folder import Folder
from leaps_jax.runs.jobs.groups import Group, Groups, Ready
from leaps_jax.runs.jobs.journal import TOO_LARGE, Notes
from leaps_jax.runs.jobs.settings import Settings
from leaps_jax.runs.jobs.table import Row, Shard
from leaps_jax.runtime import executable_cache, parallel

LOOKAHEAD = 2  # batches of a worker: one on the devices, one that is made ready


@dataclasses.dataclass(frozen=True)
class Batch:
    """Videos of one model and verifier.

    Attributes:
      number: of the batch.
      group: its model and verifier.
      rows: with their copies; without any, the files of the row's copies are joined.
    """

    number: int
    group: tuple[str, str]
    rows: tuple[tuple[Row, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Done:
    """What became of a batch.

    Attributes:
      finished: rows that are done now.
      failed: {number: (line, reason)}.
      busy: seconds in which the devices had it.
      dropped: another worker was faster; nothing was done.
    """

    finished: tuple[int, ...] = ()
    failed: Mapping[int, tuple[int, str]] = dataclasses.field(default_factory=dict)
    busy: float = 0.0
    dropped: bool = False


class Worker:
    """What does batches, in threads of their own.

    Args:
      out: folder or address of the run, which is there.
      identity: of the run.
      settings: of all rows.
      size: videos of a batch.
      kind: of the devices that it must have, "CPU", "GPU" or "TPU".

    Raises:
      UserError: this machine does not see the folder, or has no such device.
    """

    def __init__(
        self,
        out: Path | str,
        identity: Mapping[str, Any],
        settings: Settings,
        size: int,
        kind: str,
    ):
        where = f"on {os.uname().nodename}"
        self._folder, self._size = Folder(out, Shard(1, 1), identity), size
        if not self._folder.place.exists("jobs.json"):
            raise UserError(
                f"out={str(out)!r}: is not seen {where}; give a folder on a disk that"
                " all machines share"
            )
        if kind != "CPU" and jax.default_backend() == "cpu":
            raise UserError(
                f"engine='ray': JAX sees no {kind} {where}; install its JAX"
            )
        executable_cache.use_folder_of_user()
        cached = executable_cache.folder()
        kept = executable_cache.ExecutableCache(cached / "programs") if cached else None
        self._folder.open({})
        self._groups = Groups(settings, self._folder, kept)
        self._preparing, self._running = threading.Lock(), threading.Lock()
        self._dropped: set[int] = set()

    def decoder(self) -> AbstractContextManager[batches.Begin]:
        """Where clips are decoded: in threads of this process."""
        return batches.in_threads()

    def devices(self) -> int:
        """How many there are; answers once the worker can work."""
        return jax.local_device_count()

    def drop(self, number: int) -> None:
        """Leaves out a batch, unless it is on the devices."""
        self._dropped.add(number)

    def prepare(self, model: str, verifier: str) -> None:
        """Loads and compiles what batches to come need, while others run."""
        with parallel.on_processor():
            group = self._groups.make(model, verifier)
            if isinstance(group, Group):
                with contextlib.suppress(Exception):  # the first batch says what
                    group.engine.compile(self._size)
        with self._preparing:
            self._groups.keep(group, model, verifier)

    def do(self, batch: Batch) -> Done:
        """Makes the videos of a batch.

        Raises:
          RuntimeError: the devices failed; another process may do it.
          OSError: the folder cannot be written.
        """
        if not any(copies for _, copies in batch.rows):
            for row, _ in batch.rows:
                self._folder.join(row)
            return Done(tuple(row.number for row, _ in batch.rows))
        notes, made = Notes(), list[Any]()
        with self._preparing, parallel.on_processor():
            group, ready = self._ready(batch, notes)
        with self._running:
            if batch.number in self._dropped:
                return Done(dropped=True)
            for one in ready:
                pipeline.optimise(
                    one, self._size, lambda *of: made.append(of), notes, Stop()
                )
        if group and group.broken and not group.broken.endswith(TOO_LARGE):
            raise RuntimeError(group.broken)
        done = [row for of in made for row in pipeline.write(self._folder, *of)]
        return Done(tuple(done), notes.failed, notes.busy)

    def _ready(self, batch: Batch, notes: Notes) -> tuple[Group | None, list[Ready]]:
        rows = ((row, list(copies)) for row, copies in batch.rows)
        found = list(batches.decoded(rows, self._groups, notes, self.decoder))
        if not found:
            return None, []
        group, items = found[0][0], [item for _, items in found for item in items]
        return group, list(batches.ready([(group, items)], self._size, notes))
