"""Progress on a terminal, and plain lines in a log."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class Steps:
    """Shows how far a run of steps is, its rate, the time left and some numbers.

    With `shown` off it says nothing: of several processes one is enough.

    >>> with Steps("synthesize", total=500) as steps:           # doctest: +SKIP
    ...     steps.update(50, {"total": 3.2})
    """

    def __init__(
        self,
        name: str,
        total: int,
        start: int = 0,
        shown: bool = True,
        unit: str = "steps",
    ):
        self._name, self._total, self._start = name, total, start
        self._shown, self._unit = shown, unit
        self._console = Console(stderr=True)
        self._began = self._last_line = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._bar: Progress | None = None
        if shown and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(
                name, total=total, completed=start, rate="compiling", numbers=""
            )

    def __enter__(self) -> "Steps":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        """Reports that `step` steps are done; the rate leaves compilation out."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        done, seconds = step - self._first[0], now - self._first[1]
        per_second = done / seconds if done and seconds else 0.0
        rate = f"{per_second:.3g} {self._unit}/s" if per_second else ""
        text = "  ".join(f"{key} {value:.3g}" for key, value in numbers.items())
        if self._bar:
            self._bar.update(self._task, completed=step, rate=rate, numbers=text)
            return
        if (
            not self._shown
            or step < self._total
            and now - self._last_line < _SECONDS_BETWEEN_LINES
        ):
            return
        self._last_line = now
        left = f"{(self._total - step) / per_second:.0f} s left" if per_second else ""
        parts = [f"{self._name} {step}/{self._total}", rate, left, text]
        print("  ".join(p for p in parts if p), file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Prints a line beside the bar."""
        if self._bar:
            self._console.print(line, highlight=False)
        elif self._shown:
            print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def interruptible() -> Iterator[list[bool]]:
    """Yields a list that becomes non-empty at the first Ctrl-C; the second raises."""
    stop: list[bool] = []

    def handle(number, frame):
        if stop:
            raise KeyboardInterrupt
        stop.append(True)

    try:
        previous = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread: no signals here
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
