"""How far a run of jobs is: what was done, what failed, how long the devices waited."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from leaps_jax.errors import UserError, out_of_memory
from leaps_jax.runs.jobs.folder import Folder
from leaps_jax.runs.jobs.table import Row

TOO_LARGE = "does not fit the memory of the device; lower --batch, or use --remat"
SHOWN = 10  # failed rows named at the end


class Notes:
    """Which rows of a batch failed, and how long the devices had it.

    Attributes:
      failed: {number: (line, reason)}.
      busy: seconds.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.failed: dict[int, tuple[int, str]] = {}
        self.busy = self._began = 0.0

    def fail(self, number: int, line: int, reason: str) -> None:
        """A row cannot be done."""
        with self._lock:
            self.failed.setdefault(number, (line, reason))

    @contextlib.contextmanager
    def failing(self, row: Row, what: str) -> Iterator[None]:
        """A block in which any error is the row's: hours of work must not end with it.

        Args:
          row: of the table.
          what: `argument=value`, for an error that does not name it.
        """
        try:
            yield
        except UserError as error:
            self.fail(row.number, row.line, str(error))
        except Exception as error:
            self.fail(row.number, row.line, f"{what}: {in_a_line(error)}")

    def begin(self) -> None:
        """The devices have a batch."""
        self._began = time.monotonic()

    def end(self) -> None:
        """The devices are done with it."""
        if self._began:  # else they never had it
            self.busy += time.monotonic() - self._began
        self._began = 0.0


class Journal(Notes):
    """Counts rows as well, and tells of them in the folder."""

    def __init__(self, folder: Folder):
        super().__init__()
        self._place = folder.place
        self._record = f"shard-{folder.suffix}.json"
        self._failures = f"failed-{folder.suffix}.jsonl"
        self._place.remove(self._failures)  # those of the start before
        self._failing: set[int] = set()
        self._errors: list[tuple[int, str]] = []
        self._skipped = self._finished = self._batches = 0
        self._started = time.monotonic()
        self._first_end = self._last_end = self._idle = 0.0

    @property
    def over(self) -> int:
        """Rows of which nothing is left to do."""
        return self._skipped + self._finished + len(self._failing)

    def skip(self, rows: int = 1) -> None:
        """Rows were done before."""
        with self._lock:
            self._skipped += rows

    def finish(self) -> None:
        """A row was written."""
        with self._lock:
            self._finished += 1

    def fail(self, number: int, line: int, reason: str) -> None:
        """A row cannot be done."""
        with self._lock:
            if number in self._failing:  # another copy of it
                return
            self._failing.add(number)
            if len(self._errors) < SHOWN:
                self._errors.append((line, f"line {line}: {reason}"))
            failure = {"row": number, "line": line, "error": reason}
            self._place.add_lines(self._failures, [failure])

    def begin(self) -> None:
        """The devices have a batch."""
        if self._batches:
            self._idle += time.monotonic() - self._last_end

    def end(self) -> None:
        """The devices are done with it."""
        self._last_end = time.monotonic()
        self._first_end = self._first_end or self._last_end
        self._batches += 1

    def idle(self) -> float:
        """The share of the time since the first batch in which no batch ran."""
        wall = self._last_end - self._first_end
        return self._idle / wall if wall else 0.0

    def save(
        self, status: str, rows: int, more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Writes `shard-i-of-n.json` and returns it, with some `errors` by line.

        `failures` names the file of all that failed, None where nothing did. `more`
        is what an engine knows better, or besides.
        """
        record = {
            "status": status,
            "rows": rows,
            "done_before": self._skipped,
            "finished": self._finished,
            "failed": len(self._failing),
            "failures": self._failures if self._failing else None,
            "batches": self._batches,
            "seconds": round(time.monotonic() - self._started, 2),
            "idle_seconds": round(self._idle, 4),
            "idle_share": round(self.idle(), 5),
            **(more or {}),
        }
        self._place.flush()
        self._place.write_json(self._record, record)
        return record | {"errors": [what for _, what in sorted(self._errors)]}


def in_a_line(error: Exception) -> str:
    """The error of a library, for a line of the journal."""
    if out_of_memory(error):
        return TOO_LARGE
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])
