"""A run of jobs, from the table to the folder.

Three threads work at a time: one reads, decodes and compiles for the next batches, one
runs the devices, one writes what is finished.
"""

import collections
import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.errors import UserError
from leaps_jax.progress import Steps, Stop, interruptible
from leaps_jax.runs.jobs import batches
from leaps_jax.runs.jobs.folder import Folder
from leaps_jax.runs.jobs.groups import Groups, Item, Ready
from leaps_jax.runs.jobs.journal import Journal, Notes
from leaps_jax.runs.jobs.settings import Settings
from leaps_jax.runs.jobs.table import Shard, Survey, rows, survey
from leaps_jax.runtime import parallel
from leaps_jax.runtime.engine import NotFiniteError
from leaps_jax.runtime.executable_cache import ExecutableCache
from leaps_jax.zoo import references


def execute(
    table: Path,
    out: Path | str,
    settings: Settings,
    batch: int,
    shard: Shard | None = None,
    executables: ExecutableCache | None = None,
) -> dict[str, Any]:
    """Does the rows of a table that are not done yet.

    Args:
      table: the CSV file.
      out: folder of the run, made if missing, or an address such as s3://bucket/folder.
      settings: of all rows; a folder with others is refused.
      batch: videos at a time, on all devices of this process.
      shard: the rows to do; by default the share of this process.
      executables: where compiled steps are kept for the next start; nowhere by default.

    Returns:
      The content of `shard-i-of-n.json`: its `status` is "finished", or "stopped" after
      Ctrl-C; `failed` counts the rows that could not be done and `errors` names some.

    Raises:
      UserError: the table is none, or the folder holds something else, or what was made
        with other weights.
      OSError: the folder cannot be written; what was is kept.

    >>> settings = Settings("leaps", Config(steps=500))         # doctest: +SKIP
    >>> execute(Path("jobs.csv"), Path("videos"), settings, 32)  # doctest: +SKIP
    """
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1")
    settings.check()
    shard = shard or Shard.parse(None)
    found = survey(table)
    folder = Folder(out, shard, settings.identity(found, batch))
    folder.open(weights(found), found.facts())
    with folder.locked():
        groups = Groups(settings, folder, executables)
        return _run(table, len(shard.rows(found.rows)), folder, groups, batch)


def weights(found: Survey) -> dict[str, str]:
    """Digests of all weights that are there; rows of others will say what is wrong."""
    digests = {}
    for name in sorted(found.models | found.verifiers):
        with contextlib.suppress(UserError, OSError):
            digests[name] = references.fingerprint(name)
    return digests


def _run(
    table: Path, total: int, folder: Folder, groups: Groups, size: int
) -> dict[str, Any]:
    journal = Journal(folder)
    good = rows(table, folder.shard, journal.fail)
    undone = batches.undone(good, folder, journal)
    filled = batches.filled(batches.decoded(undone, groups, journal), size)
    ready = batches.ready(filled, size, journal)
    writer = _Writer(folder, journal)
    with (
        Steps("jobs", total, unit="rows") as steps,
        interruptible() as stop,
    ):
        with writer, batches.ahead(ready, stop) as ahead:
            for batch in ahead:
                running = len({item.row.number for item in batch.items})
                journal.save("running", total, {"running": running})
                optimise(batch, size, writer.submit, journal, stop)
                steps.update(journal.over, {"idle %": 100 * journal.idle()})
        steps.update(journal.over, {"idle %": 100 * journal.idle()})
    return journal.save("stopped" if stop else "finished", total)


def optimise(
    ready: Ready | None,
    size: int,
    submit: Callable[..., None],
    notes: Notes,
    stop: Stop,
) -> None:
    """Runs one batch, and again without the rows that were not finite.

    Args:
      ready: the batch.
      size: of all batches.
      submit: takes what `write` does of the videos.
      notes: of rows that failed, and of the devices.
      stop: ends it without videos.
    """
    while ready is not None:
        group, items, again = ready.group, ready.items, None
        try:
            started = ready.start()
            notes.begin()
            for snapshot in group.engine.run(size, *started):
                last = snapshot
                stop.begin_call()
                if stop:
                    return
        except NotFiniteError as error:
            notes.end()
            bad = {items[i].row for i in error.videos if i < len(items)}
            bad = bad or {item.row for item in items}
            for row in bad:
                notes.fail(row.number, row.line, str(error))
            items = [item for item in items if item.row not in bad]
            if items:
                again = group.ready(items, size)
        except Exception as error:  # hours of work must not end with one model
            notes.end()
            group.give_up(error, items, notes)
        else:
            notes.end()
            final = last.placed
            assert final is not None
            videos = _as_bytes(group.engine.decode(final.parameters))
            submit(
                items,
                parallel.gather(videos, len(items)),
                {
                    name: values[-1, : len(items)]
                    for name, values in last.metrics.items()
                },
            )
        ready = again


@jax.jit
def _as_bytes(pixels: jax.Array) -> jax.Array:
    return jnp.rint(jnp.clip(pixels, 0, 1) * 255).astype(jnp.uint8)


class _Writer:
    """Writes finished batches, in a thread."""

    def __init__(self, folder: Folder, journal: Journal):
        self._folder, self._journal = folder, journal
        self._pool = ThreadPoolExecutor(1, "write")
        self._busy: collections.deque[Future] = collections.deque()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            while self._busy:
                self._wait()
        finally:
            self._pool.shutdown()

    def submit(self, items: list[Item], *what: Any) -> None:
        while len(self._busy) > 1:  # a disk that is too slow holds the devices up
            self._wait()
        self._busy.append(self._pool.submit(self._write, items, *what))

    def _wait(self) -> None:
        self._busy.popleft().result()

    def _write(self, items: list[Item], *what: Any) -> None:
        for _ in write(self._folder, items, *what):
            self._journal.finish()


def write(
    folder: Folder,
    items: list[Item],
    videos: np.ndarray,
    final: dict[str, np.ndarray],
) -> Iterator[int]:
    """Writes the videos of a batch, and tells the number of each row that is done."""
    arrays = {
        "videos": videos,
        "labels": np.array([item.label for item in items]),
        "final": np.stack(list(final.values()), -1),
    }
    start = 0
    for row, same in itertools.groupby(items, lambda item: item.row):
        copies = [item.copy for item in same]
        own = slice(start, start + len(copies))
        start += len(copies)
        values = {name: value[own] for name, value in arrays.items()}
        if folder.add(row, copies, values, list(final)):
            yield row.number
