"""Tables of jobs on Ray for tests: workers with tiny networks that can be hurt."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from job_tables import CONFIG
from tiny import make_tiny

from leaps_jax.data import arrays
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import crew, ray_engine
from leaps_jax.zoo import load as loading
from leaps_jax.zoo import references

SETTINGS = jobs.Settings("leaps", CONFIG)
POISON = 4294967295  # the seed of a row that ends its worker


def use_tiny() -> None:
    """`tiny@0` and so on are tiny networks in this process."""
    loading.load_model = lambda reference, **_: make_tiny(int(reference[-1]))
    references.fingerprint = lambda reference: reference


class Tiny(crew.Actor):
    """A worker that takes `PAUSE` seconds more for a batch, and leaves its number.

    A file of `workers/` beside the folder of the run is named by the process, and holds
    the node. Where there is a file `once`, row 5 fails, but once; where there is
    `hold`, batches wait.
    """

    def __init__(self, variables, tasks, out, *made):
        use_tiny()
        *made, kind = made
        if kind == "GPU":  # simulated: it cannot decode itself
            arrays.open_array = None
        super().__init__(variables, tasks, out, *made, "CPU")
        folder = Path(str(out).removeprefix("file://")).parent / "workers"
        folder.mkdir(exist_ok=True)
        self._once, self._hold = folder / "once", folder / "hold"
        (folder / f"{os.getpid()}.tmp").write_text(self.node())
        (folder / f"{os.getpid()}.tmp").rename(folder / str(os.getpid()))

    def do(self, batch):
        if any(row.seed == POISON for row, copies in batch.rows):
            os._exit(1)
        if self._once.exists() and any(row.number == 5 for row, _ in batch.rows):
            self._once.unlink()
            raise RuntimeError("the device is gone")
        while self._hold.exists():
            time.sleep(0.05)
        time.sleep(float(os.environ.get("PAUSE", 0.2)))
        return super().do(batch)


def alive(out: Path) -> dict[int, str]:
    """{process: node} of the workers of a run."""
    found = {}
    for path in (out.parent / "workers").glob("*[0-9]"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.name), 0)
            found[int(path.name)] = path.read_text()
    return found


def main() -> None:
    """A driver: TABLE OUT BATCH; prints its record, or the error of a user."""
    use_tiny()
    crew.Actor = Tiny
    table, out, batch = sys.argv[1:]
    try:
        record = ray_engine.execute(Path(table), Path(out), SETTINGS, int(batch))
    except jobs.table.UserError as error:
        record = {"error": str(error)}
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    # By the name that workers can import.
    import ray_tables

    ray_tables.main()
