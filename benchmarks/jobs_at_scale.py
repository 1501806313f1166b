"""What the driver of a large run takes: a table of a million rows, 256 workers.

Nothing is optimised and Ray is not started: batches are answered at once, so that what
is measured is this process alone. Half of the rows are done before, as files without
content. Prints a line for each part, with the most memory that the process had so far.

    python benchmarks/jobs_at_scale.py --rows 1000000 --workers 256 --batch 32
"""

import argparse
import collections
import csv
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from ray import exceptions

from leaps_jax import Config
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import ray_engine, status, worker
from leaps_jax.runs.jobs.crew import Crew
from leaps_jax.runs.jobs.folder import Folder
from leaps_jax.runs.jobs.table import survey

MODELS = 4


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Prints what a block took."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:<36} {seconds:7.1f} s   {most:5.2f} GiB at most", flush=True)


def write_table(path: Path, rows: int) -> None:
    """Rows of several models, in turn, with paths as long as usual ones."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(jobs.COLUMNS)
        for i in range(rows):
            clip = f"/data/kinetics400/train/abseiling/{i:08d}_000012_000022.mp4"
            model = f"x3d_xs@/data/weights/x3d_xs_{i % MODELS}"
            writer.writerow((model, "", clip, i % 400, "", ""))


def write_rows(out: Path, numbers: range) -> None:
    """Files without content where those of rows would be."""
    for number in numbers:
        path = out / "rows" / f"{number // 1000:03d}"
        if number % 1000 in (0, numbers.start % 1000):
            path.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path / f"{number:06d}.npz", os.O_CREAT))


class Answering:
    """What the driver calls of Ray; workers answer in any order, and make nothing."""

    exceptions = exceptions

    def __init__(self, workers: int, random: random.Random):
        self._workers, self._random = workers, random
        self.batches = 0

    def nodes(self) -> list[dict]:
        """One machine with all CPUs."""
        node = {"NodeID": "one", "Alive": True, "Resources": {"CPU": self._workers}}
        return [node]

    def remote(self, _) -> SimpleNamespace:
        """A class of workers."""
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._actor))

    def _actor(self, *_) -> SimpleNamespace:
        return SimpleNamespace(
            node=SimpleNamespace(remote=lambda: Reference("one")),
            drop=SimpleNamespace(remote=lambda _: None),
            do=SimpleNamespace(remote=lambda batch: Reference(self._done(batch))),
        )

    def _done(self, batch: worker.Batch):
        self.batches += 1
        return worker.Done(tuple(row.number for row, _ in batch.rows), busy=1.0)

    def wait(self, asked, num_returns=1, timeout=None):
        """A tenth of what was asked."""
        answered = [one for one in asked if self._random.random() < 0.1]
        return (answered or asked[:1]), []

    def get(self, reference):
        """What was answered."""
        return reference.value

    def kill(self, actor, no_restart=True) -> None:
        """Ends nothing."""


class Reference:
    """The reference of an answer."""

    def __init__(self, value):
        self.value = value


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.rows, options.workers, options.batch)


def measure(folder: Path, rows: int, workers: int, batch: int) -> None:
    """Prints times and memory of a run in a folder."""
    table, out = folder / "jobs.csv", folder / "out"
    with timed("packages imported"):
        pass
    write_table(table, rows)
    settings = jobs.Settings("leaps", Config(steps=500), dtype="float32")
    with timed("table read and checked"):
        found = survey(table)
    held = Folder(out, jobs.Shard(1, 1), settings.identity(found, batch))
    held.open({}, found.facts())
    write_rows(out, range(0, rows // 2))
    ray = Answering(workers, random.Random(0))
    crew = Crew(ray, (), "CPU", 1, None)
    with timed("finished rows listed, rest planned"):
        run = ray_engine._Run(ray, found, held, batch, crew)
    ray_engine._Metrics = lambda _: SimpleNamespace(tell=lambda _: None)
    start = time.perf_counter()
    with timed("all batches handed out and heard of"):
        record = run.go()
    seconds = time.perf_counter() - start
    assert record["finished"] + record["done_before"] == rows, record
    print(f"  {ray.batches} batches, {ray.batches / seconds:.0f} per second")
    write_rows(out, range(rows // 2, rows))
    with timed("status of the folder, all rows done"):
        assert status.status(out).all.done == rows
    most = collections.Counter(
        {root: len(names + folders) for root, folders, names in os.walk(out)}
    ).most_common(1)
    print(f"  {most[0][1]} names in the largest folder, {Path(most[0][0]).name}/")


if __name__ == "__main__":
    sys.exit(main())
