"""Tables of jobs for tests: how they are written, run, and what they leave."""

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leaps_jax import Config
from leaps_jax.runs import jobs

TESTS = Path(__file__).parent.parent
CONFIG = Config(steps=6, steps_per_call=3, noise=0.3)
SETTINGS = jobs.Settings("leaps", CONFIG)


def write(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, jobs.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def results(out: Path) -> dict[int, dict[str, np.ndarray]]:
    found = {}
    for path in sorted((out / "rows").rglob("*.npz")):
        assert path.parent.name == f"{int(path.stem) // 1000:03d}"
        with np.load(path) as file:
            found[int(path.stem)] = dict(file)
    return found


def files(out: Path) -> dict[str, tuple[int, int]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (out / "rows").rglob("*.npz")
    }


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return np.abs(a.astype(int) - b.astype(int)).max()


#: A process that does a table of `tiny` networks. After every so many batches it prints
#: the last row and the MiB of memory that it holds; at the end, its record.
SCRIPT = """
import json, os, resource, sys
from pathlib import Path
from tiny import make_tiny
from leaps_jax import Config
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import pipeline
from leaps_jax.zoo import load as loading
from leaps_jax.zoo import references

table, out, batch, steps, every = Path(sys.argv[1]), Path(sys.argv[2]), *map(
    int, sys.argv[3:6]
)
shard = jobs.Shard.parse(os.environ.get("SHARD"))
tiny = make_tiny(0)
loading.load_model = lambda reference, **_: tiny
references.fingerprint = lambda reference: reference
add, written = pipeline._Writer._write, []

def noting(self, items, *what):
    add(self, items, *what)
    written.append(items[-1].row.number)
    if every and len(written) % every == 0:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident = pages * resource.getpagesize() / 2**20
        print(written[-1], round(resident, 1), flush=True)

pipeline._Writer._write = noting
config = Config(steps=steps, steps_per_call=max(1, steps // 2), noise=0.3)
settings = jobs.Settings("leaps", config)
record = jobs.execute(table, out, settings, batch, shard)
print(json.dumps(record), flush=True)
"""


def start(
    table: Path,
    out: Path,
    batch: int,
    steps: int,
    every: int = 0,
    before: str = "",
    words: Sequence[str] = (),
    **variables: str,
) -> subprocess.Popen:
    """Starts `SCRIPT` with environment variables of its own, `before` run before it."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    given = map(str, (table, out, batch, steps, every))
    return subprocess.Popen(
        [sys.executable, "-c", before + SCRIPT, *given, *words],
        env=os.environ | {"PYTHONPATH": path} | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
