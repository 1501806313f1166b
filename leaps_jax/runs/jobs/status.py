"""How far a table of jobs is, whatever engine and however many processes do it."""

import dataclasses
import fnmatch
import os
import time
from pathlib import Path

import numpy as np

from leaps_jax import schemas
from leaps_jax.errors import UserError
from leaps_jax.runs.jobs import folder, places
from leaps_jax.runs.jobs.table import survey

Place = places.Disk | places.Store
SILENT = 600.0  # seconds without news after which a process counts as gone


@dataclasses.dataclass(frozen=True)
class Progress:
    """Of the rows of one model and verifier, or of all.

    Attributes:
      name: of the model and the verifier.
      rows: how many there are, None where the table is gone.
      done: those whose file is there.
      failed: those that could not be done.
    """

    name: str
    rows: int | None
    done: int
    failed: int


@dataclasses.dataclass(frozen=True)
class WorkerProgress:
    """A worker of Ray, or a process that does a shard.

    Attributes:
      name: of the worker, or of the shard.
      model: that it does; unknown of a shard.
      rows: that it finished since it started.
      batches: that it did.
      running: rows that it has.
      rate: rows per second.
      silent: seconds since there was news of its run.
    """

    name: str
    model: str
    rows: int
    batches: int
    running: int
    rate: float
    silent: float


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
      all: of all rows.
      models: by model and verifier; empty where the table is gone or another one.
      workers: those of the last starts that are not over.
    """

    all: Progress
    models: tuple[Progress, ...]
    workers: tuple[WorkerProgress, ...]

    @property
    def running(self) -> int:
        """Rows that a worker has."""
        return sum(worker.running for worker in self.workers)

    @property
    def rate(self) -> float:
        """Rows per second, of all workers that tell of themselves."""
        return sum(w.rate for w in self.workers if w.silent < SILENT)

    @property
    def seconds_left(self) -> float | None:
        """Until all rows are done or failed; None where nobody can know."""
        if self.all.rows is None or not self.rate:
            return None
        return (self.all.rows - self.all.done - self.all.failed) / self.rate


def status(out: Path | str) -> Status:
    """Reads how far a run is, from its files alone.

    Args:
      out: folder of the run.

    Raises:
      UserError: it is no such folder, or a file in it is damaged.
      OSError: it cannot be read.

    >>> status(Path("videos")).all.done                         # doctest: +SKIP
    1234
    """
    remedy = "give the --out of a `synthesize --jobs`"
    where = places.place(out)
    try:
        facts = where.read_json("jobs.json", schemas.JobsFacts, remedy)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"dir={str(out)!r}: is no run of a table; {remedy}") from None
    done = set(folder.finished(where))
    failed = _failed(where) - done
    total = Progress("all", facts.rows, len(done), len(failed))
    return Status(total, _models(facts, done, failed), tuple(_workers(where)))


def _failed(where: Place) -> set[int]:
    found = set()
    for name in fnmatch.filter(where.names(), "failed-*.jsonl"):
        for line in where.read(name).splitlines():
            what = schemas.parsed(
                f"{where}/{name}", line, schemas.JobsFailure, "remove it"
            )
            found.add(what.row)
    return found


def _models(
    facts: schemas.JobsFacts, done: set[int], failed: set[int]
) -> tuple[Progress, ...]:
    """By model and verifier, as the table has them."""
    if not os.path.isfile(facts.table):
        return ()
    table = survey(Path(facts.table))
    if table.digest != facts.identity.get("table"):
        return ()
    kinds = len(table.groups)
    known = [np.arange(table.rows)]
    for numbers in (done, failed):
        known.append(np.array([n for n in numbers if n < table.rows], np.int64))
    rows, *parts = (
        np.bincount(table.group[numbers], minlength=kinds).tolist() for numbers in known
    )
    names = (" and ".join(filter(None, group)) for group in table.groups)
    return tuple(map(Progress, names, rows, *parts))


def _workers(where: Place) -> list[WorkerProgress]:
    found = []
    for file in sorted(fnmatch.filter(where.names(), "shard-*.json")):
        record = where.read_json(file, schemas.JobsProgress, "remove it")
        if record.status != "running":
            continue
        silent = max(0.0, time.time() - where.modified(file))
        seconds = record.seconds or 1.0
        name = (
            file.removesuffix(".json").replace("shard-", "shard ").replace("-of-", "/")
        )
        if not record.workers:
            counts = (record.finished, record.batches, record.running)
            rate = record.finished / seconds
            found.append(WorkerProgress(name, "", *counts, rate, silent))
        for worker in record.workers:
            name = f"{worker.worker} on {worker.node[:8] or 'no node'}"
            counts = (worker.rows, worker.batches, worker.running)
            rate = worker.rows / seconds
            found.append(WorkerProgress(name, worker.model, *counts, rate, silent))
    return found
