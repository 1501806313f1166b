"""A run of jobs on Ray: a worker for each device, and batches as workers get free.

This process, the driver, reads the table and the names of finished files, and hands out
batches; it loads no model and needs no device. Ray starts workers, places them, starts
them again when they die, and tells of it. A batch of a worker that died goes to another
one. What is finished is decided by the files of rows alone, so that any start of any
engine goes on with a folder.
"""

import collections
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leaps_jax.errors import UserError
from leaps_jax.progress import Steps, interruptible
from leaps_jax.runs.jobs import pipeline
from leaps_jax.runs.jobs.crew import (
    Crew,
    Member,
    connected,
    device_kind,
    import_ray,
    nodes,
    reason_of,
)
from leaps_jax.runs.jobs.folder import Folder
from leaps_jax.runs.jobs.journal import Journal
from leaps_jax.runs.jobs.settings import Settings
from leaps_jax.runs.jobs.table import Row, Shard, Survey, survey
from leaps_jax.runs.jobs.worker import LOOKAHEAD, Batch, Done

TRIES = 3  # times that a batch may end its worker
SOON = 4  # batches that a worker does while it prepares its next model
LATE = 3  # times as long as batches take: a worker without any does it as well
NEWS = 1.0  # seconds from one record of the run to the next
PATIENCE = 60.0  # seconds without any worker until a line says so


def execute(
    table: Path,
    out: Path | str,
    settings: Settings,
    batch: int,
    devices: int = 1,
    workers: int | None = None,
) -> dict[str, Any]:
    """Does the rows of a table that are not done yet, on the machines of a cluster.

    That is the cluster that `ray.init` was called for, that of `RAY_ADDRESS`, one that
    runs on this machine, or else one that is started on this machine and closed.

    Args:
      table: the CSV file.
      out: folder of the run, on a disk that all machines share; made if missing. Or an
        address such as s3://bucket/folder.
      settings: of all rows; a folder with others is refused.
      batch: videos of a worker at a time.
      devices: of a worker, all on one machine.
      workers: how many; by default, and at most at a time, those that have devices.
        A cluster that grows on demand needs the number.

    Returns:
      The content of `shard-1-of-1.json`; see `pipeline.execute`.

    Raises:
      UserError: Ray is not installed, the table is none, the folder holds something
        else or another process works in it, or no worker could start.
      OSError: the folder cannot be written; what was is kept.
    """
    for name, value in (("batch", batch), ("devices", devices), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: must be at least 1")
    ray = import_ray()
    dtype = settings.dtype
    dataclasses.replace(settings, dtype=dtype or "float32").check()  # needs no device
    found = survey(table)
    with contextlib.closing(found), connected(ray):
        kind = device_kind(ray)
        if dtype is None:  # the workers' choice, not that of this machine
            settings = dataclasses.replace(
                settings, dtype="float32" if kind == "CPU" else "bfloat16"
            )
        identity = settings.identity(found, batch)
        folder = Folder(out, Shard(1, 1), identity)
        folder.open(pipeline.weights(found), found.facts())
        with folder.locked():
            made = (
                out.absolute() if isinstance(out, Path) else out,
                identity,
                settings,
                batch,
                kind,
            )
            crew = Crew(ray, made, kind, devices, workers)
            return _Run(ray, found, folder, batch, crew).go()


class _Waiting:
    """The rows of one model and verifier that nobody has."""

    def __init__(self, numbers: np.ndarray):
        self._numbers, self._next = numbers, 0
        self._rest: tuple[Row, list[int]] | None = None  # a row with copies left

    def __len__(self) -> int:
        return len(self._numbers) - self._next + bool(self._rest)

    def take(
        self,
        size: int,
        table: Survey,
        folder: Folder,
        journal: Journal,
        left: dict[int, int],
    ) -> list[tuple[Row, tuple[int, ...]]]:
        """Rows and copies of so many videos; notes how many copies a row has left."""
        taken: list[tuple[Row, tuple[int, ...]]] = []
        while size and len(self):
            if self._rest:
                row, copies = self._rest
                self._rest = None
            else:
                number = int(self._numbers[self._next])
                self._next += 1
                try:
                    row = table.row(number)
                except UserError as error:
                    journal.fail(number, table.line(number), str(error))
                    continue
                copies = folder.missing(row)
                if not copies:  # killed after its last part
                    folder.join(row)
                    journal.skip()
                    continue
                left[number] = len(copies)
            now, later = copies[:size], copies[size:]
            taken.append((row, tuple(now)))
            size -= len(now)
            self._rest = (row, later) if later else None
        return taken


class _Run:
    """What is to do, who does it, and what came of it."""

    def __init__(self, ray: Any, table: Survey, folder: Folder, size: int, crew: Crew):
        self._ray, self._table, self._folder = ray, table, folder
        self._size, self._crew = size, crew
        self._journal = Journal(folder)
        done = folder.done(table.rows)
        self._journal.skip(int(done.sum()))
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        for place, group in enumerate(table.groups):
            numbers = np.flatnonzero((table.group == place) & ~done)
            if len(numbers):
                self._waiting[group] = _Waiting(numbers)
        self._again: collections.deque[Batch] = collections.deque()
        self._tries: collections.Counter[int] = collections.Counter()
        self._left: dict[int, int] = {}  # copies to hear of, of rows that are begun
        self._open: dict[int, int] = {}  # workers that have a batch, by its number
        self._number = self._batches = 0
        self._heard = 0.0
        self._took: collections.deque[float] = collections.deque(maxlen=100)

    def go(self) -> dict[str, Any]:
        """Does all of it; see `execute`."""
        saved = began = time.monotonic()
        told, patient = _Metrics(self._ray), True
        waiting = "starting workers"
        try:
            with (
                Steps("jobs", self._table.rows, unit="rows", waiting=waiting) as steps,
                interruptible() as stop,
            ):
                while not stop and (self._to_do() or self._open):
                    steps.update(self._journal.over, {"idle %": 100 * self._idle()[1]})
                    self._crew.grow()
                    self._hand_out()
                    self._hear()
                    if patient and time.monotonic() - began > PATIENCE:
                        patient = False
                        if not any(member.node for member in self._crew.members):
                            steps.say("no worker so far: are all devices in use?")
                    if time.monotonic() - saved > NEWS:
                        told.tell(self._save("running"))
                        saved = time.monotonic()
                steps.update(self._journal.over, {"idle %": 100 * self._idle()[1]})
            return self._save("stopped" if stop else "finished")
        finally:
            self._crew.close()

    # Handing out.

    def _to_do(self) -> bool:
        return bool(self._again or any(map(len, self._waiting.values())))

    def _hand_out(self) -> None:
        for ahead in range(LOOKAHEAD):  # who has nothing comes first
            for member in self._crew.members:
                if member.node and len(member.batches) == ahead:
                    batch = self._next(member)
                    if batch is not None:
                        self._give(member, batch)

    def _next(self, member: Member) -> Batch | None:
        """What a worker should do next."""
        if any(self._tries[batch.number] for batch, _ in member.batches.values()):
            return None  # alone, a batch that ends its worker is known to have done it
        for batch in self._again:
            if not (member.batches and self._tries[batch.number]):
                self._again.remove(batch)
                return batch
        if self._again and member is next(m for m in self._crew.members if m.node):
            return None  # once it has nothing, it does them
        while group := self._best(member):
            rows = self._waiting[group].take(
                self._size, self._table, self._folder, self._journal, self._left
            )
            if rows:
                return self._batch(group, rows)
        return None if member.batches else self._late(member)

    def _batch(
        self, group: tuple[str, str], rows: Iterable[tuple[Row, tuple[int, ...]]]
    ) -> Batch:
        self._number += 1
        return Batch(self._number, group, tuple(rows))

    def _best(self, member: Member) -> tuple[str, str] | None:
        """The group that a worker has, or is prepared for, or that needs one most."""
        waiting = self._rows_waiting()
        for group in (member.group, member.next):
            if group in waiting:
                return group
        share = self._share(waiting)
        return max(share, key=share.__getitem__, default=None)

    def _rows_waiting(self) -> dict[tuple[str, str], int]:
        return {group: len(rows) for group, rows in self._waiting.items() if rows}

    def _share(
        self, waiting: Mapping[tuple[str, str], int]
    ) -> dict[tuple[str, str], float]:
        """The rows of each group for each of its workers and one more."""
        at_it = collections.Counter(m.next or m.group for m in self._crew.members)
        return {group: rows / (1 + at_it[group]) for group, rows in waiting.items()}

    def _look_ahead(self, member: Member) -> None:
        """Has a worker prepare the next group when little is left of its own."""
        waiting, few = self._rows_waiting(), SOON * self._size
        at_it = sum(m.group == member.group for m in self._crew.members)
        left = waiting.pop(member.group, 0) if member.group else 0
        if left > few * at_it or member.next in waiting:
            return
        share = self._share(waiting)
        group = max(share, key=share.__getitem__, default=None)
        if group and share[group] > few:
            member.next = group
            if group not in member.held:
                member.held.add(group)
                member.actor.prepare.remote(*group)

    def _late(self, member: Member) -> Batch | None:
        """A batch of another worker that waits there, or takes far too long."""
        if not self._took:
            return None
        before = time.monotonic() - LATE * statistics.median(self._took)
        for other in self._crew.members:
            for place, (batch, since) in enumerate(other.batches.values()):
                late = since < before
                waits = place and batch.group in member.held
                if (late or waits) and self._open.get(batch.number) == 1:
                    other.actor.drop.remote(batch.number)
                    return batch
        return None

    def _give(self, member: Member, batch: Batch) -> None:
        reference = member.actor.do.remote(batch)
        member.batches[reference] = batch, time.monotonic()
        member.group = batch.group
        member.held.add(batch.group)
        self._open[batch.number] = self._open.get(batch.number, 0) + 1
        self._look_ahead(member)

    # Hearing what came of it.

    def _hear(self) -> None:
        """Waits for answers, half a second at most."""
        members = {ref: m for m in self._crew.members for ref in m.batches}
        asked = [*self._crew.starting, *members]
        if not asked:
            time.sleep(0.5)
        elif self._ray.wait(asked, timeout=0.5)[0]:
            came, _ = self._ray.wait(asked, num_returns=len(asked), timeout=0)
            for reference in came:
                if reference in self._crew.starting:
                    self._crew.welcome(reference)
                else:
                    self._answered(reference, members[reference])

    def _answered(self, reference: Any, member: Member) -> None:
        batch, since = member.batches.pop(reference)
        others = self._open.get(batch.number, 0) - 1  # below 0: another was first
        if others >= 0:
            self._open[batch.number] = others
        self._heard = time.monotonic()
        try:
            done = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            if not others:
                del self._open[batch.number]
                self._lost(batch, member, error)
            if member.node:  # of several batches, the first to tell
                raised = isinstance(error, self._ray.exceptions.RayTaskError)
                self._crew.lose(member, end=raised)
            return
        member.busy += done.busy if member.first else 0.0
        member.first = member.first or self._heard
        member.done += 1
        if done.dropped and not others:  # and the other one failed
            del self._open[batch.number]
            again = self._batch(batch.group, batch.rows)  # which nobody drops
            self._tries[again.number] = self._tries[batch.number]
            self._again.append(again)
        elif others >= 0 and not done.dropped:
            del self._open[batch.number]
            self._took.append(self._heard - since)
            self._batches += 1
            self._count(batch, done, member)

    def _lost(self, batch: Batch, member: Member, error: Exception) -> None:
        """A batch whose worker died, or is of no use any more."""
        if isinstance(error, self._ray.exceptions.RayActorError):
            if member.node and member.node not in nodes(self._ray):
                self._again.append(batch)  # no fault of its own
                return
        self._tries[batch.number] += 1
        if self._tries[batch.number] < TRIES:
            self._again.append(batch)
            return
        if isinstance(error, OSError):
            raise error.cause  # type: ignore[attr-defined]
        if len(batch.rows) > 1:  # one of them it is
            half = len(batch.rows) // 2
            for rows in (batch.rows[:half], batch.rows[half:]):
                part = self._batch(batch.group, rows)
                self._tries[part.number] = TRIES - 1
                self._again.append(part)
            return
        ((row, _),) = batch.rows
        reason = f"ended its worker {TRIES} times ({reason_of(error)})"
        remedy = "look at its clip and at the memory of the machine"
        self._journal.fail(row.number, row.line, f"row: {reason}; {remedy}")
        self._left.pop(row.number, None)

    def _count(self, batch: Batch, done: Done, member: Member) -> None:
        for number, (line, reason) in done.failed.items():
            self._journal.fail(number, line, reason)
            self._left.pop(number, None)
        for number in done.finished:
            if self._left.pop(number, None) is not None:
                self._journal.finish()
                member.rows += 1
        for row, copies in batch.rows:
            if copies and row.number in self._left:
                self._left[row.number] -= len(copies)
                if not self._left[row.number]:  # all of its parts are written
                    self._again.append(self._batch(batch.group, [(row, ())]))

    def _idle(self) -> tuple[float, float]:
        """Seconds that workers waited since their first batches, and their share."""
        windows = [
            (self._heard - m.first, m.busy) for m in self._crew.members if m.first
        ]
        idle = sum(max(0.0, window - busy) for window, busy in windows)
        return idle, idle / (sum(window for window, _ in windows) or 1.0)

    def _save(self, status: str) -> dict[str, Any]:
        workers: list[dict[str, Any]] = [
            {
                "worker": str(member.name),
                "node": member.node,
                "model": member.group[0] if member.group else "",
                "running": sum(len(b.rows) for b, _ in member.batches.values()),
                "batches": member.done,
                "rows": member.rows,
                "busy": round(member.busy, 2),
            }
            for member in self._crew.members
        ]
        seconds, share = self._idle()
        more = {
            "engine": "ray",
            "running": sum(worker["running"] for worker in workers),
            "batches": self._batches,
            "idle_seconds": round(seconds, 4),
            "idle_share": round(share, 5),
            "workers": workers,
        }
        return self._journal.save(status, self._table.rows, more)


class _Metrics:
    """What Ray's dashboard shows of a run."""

    def __init__(self, ray: Any):
        from ray.util import metrics

        made = metrics.Gauge
        self._rows = made("leaps_jax_rows", "Rows of the table", tag_keys=("state",))
        self._idle = made("leaps_jax_idle_share", "Share of time without a batch")
        self._workers = made(
            "leaps_jax_worker_rows", "Rows that a worker did", tag_keys=("worker",)
        )

    def tell(self, record: Mapping[str, Any]) -> None:
        """Tells a record of the run."""
        for state in ("done_before", "finished", "failed", "running"):
            self._rows.set(record[state], {"state": state})
        self._idle.set(record["idle_share"])
        for worker in record["workers"]:
            self._workers.set(worker["rows"], {"worker": worker["worker"]})
