"""Progress on a terminal, plain lines in a log, and a bar in a notebook."""

import contextlib
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")

_BETWEEN_LINES = 10.0  # seconds
# Characters of the bar and of the time left: with them a line of 60 has room for the
# name, 12345/12345 and the rate.
_BAR, _LEFT = 12, len("0:00:00")


class Steps:
    """Shows how far a piece of work is, its rate, the time left and some numbers.

    On a terminal that is one line, in which the numbers come last and only as many as
    fit; in a log a line at the start and then every ten seconds.

    Args:
      name: of the work.
      total: of its steps; None until `update` tells.
      start: steps that were done before.
      shown: off, nothing is said: of several processes one is enough.
      unit: of what is counted.
      waiting: what goes on until the first step is done.
      brief: for work that may be over at once: no trace of it is left on a terminal,
        and a log hears of it only if it takes long.
      console: to draw on; standard error by default.

    >>> with Steps("synthesize", total=500) as steps:           # doctest: +SKIP
    ...     steps.update(50, {"total": 3.2})
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        start: int = 0,
        shown: bool = True,
        unit: str = "steps",
        waiting: str = "compiling",
        brief: bool = False,
        console: Console | None = None,
    ):
        self._console = console or Console(stderr=True)
        self._shown = shown
        bar = None
        if shown and self._console.is_terminal:
            bar = Progress(console=self._console, transient=brief)
            bar.columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=_BAR),
                TextColumn("{task.fields[count]}"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                _Numbers(bar),
            )
        self._own_bar = bar
        self._begin(bar, name, total, start, unit, waiting, brief)

    def _begin(
        self,
        bar: Progress | None,
        name: str,
        total: int | None,
        start: int,
        unit: str,
        waiting: str,
        brief: bool,
    ) -> None:
        self._bar, self._name, self._total, self._start = bar, name, total, start
        self._unit, self._waiting, self._brief = unit, waiting, brief
        self._began = self._last_line = time.monotonic()
        self._first: tuple[int, float] | None = None
        if bar:
            fields: dict[str, Any] = {"rate": waiting, "numbers": {}}
            fields["count"] = self._count(start)
            self._task = bar.add_task(name, total=total, completed=start, **fields)

    def __enter__(self) -> "Steps":
        if self._own_bar:
            self._own_bar.start()
        elif self._shown and not self._brief and self._start != self._total:
            line = f"{self._name} {self._count(self._start)}  {self._waiting}".rstrip()
            print(line, file=sys.stderr, flush=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._own_bar:
            self._own_bar.stop()
        elif self._bar:  # a part
            self._bar.remove_task(self._task)

    def part(
        self, name: str, total: int, unit: str, waiting: str = "compiling"
    ) -> "Steps":
        """Work within this one, shown in a line below it until its `with` ends."""
        part = object.__new__(Steps)
        part._console, part._shown, part._own_bar = self._console, self._shown, None
        part._begin(self._bar, name, total, 0, unit, waiting, brief=True)
        return part

    def update(
        self,
        step: int,
        numbers: Mapping[str, float] | None = None,
        total: int | None = None,
    ) -> None:
        """Reports that `step` steps are done; the rate leaves compilation out.

        Args:
          step: how many are done.
          numbers: what to show of them; what was shown before by default.
          total: of the steps, where it was not known before.
        """
        now = time.monotonic()
        self._total = self._total if total is None else total
        if step == self._start:
            return
        if self._first is None:
            self._first = (step, now)
        done, seconds = step - self._first[0], now - self._first[1]
        per_second = done / seconds if done and seconds else 0.0
        rate = f"{_brief(per_second)} {self._unit}/s" if per_second else ""
        if self._bar:
            fields: dict[str, Any] = {"count": self._count(step), "rate": rate}
            if numbers is not None:
                fields["numbers"] = numbers
            self._bar.update(self._task, completed=step, total=self._total, **fields)
            return
        over = step == self._total and not self._brief and numbers is not None
        if not self._shown or not over and now - self._last_line < _BETWEEN_LINES:
            return
        self._last_line = now
        left = ""
        if per_second and self._total:
            left = f"{(self._total - step) / per_second:.0f} s left"
        parts = [f"{self._name} {self._count(step)}", rate, left]
        parts += _terms(numbers or {})
        print("  ".join(p for p in parts if p), file=sys.stderr, flush=True)

    def _count(self, step: int) -> str:
        return f"{step}" if self._total is None else f"{step}/{self._total}"

    def say(self, line: str) -> None:
        """Prints a line beside the bar."""
        if self._bar:
            self._console.print(line, highlight=False)
        elif self._shown:
            print(line, file=sys.stderr, flush=True)


class _Numbers(ProgressColumn):
    """A column of numbers, as many as fit beside the other columns."""

    def __init__(self, bar: Progress):
        super().__init__()
        self._bar = bar

    def render(self, task: Task) -> Text:
        rows = [
            (t.description, t.fields["count"], t.fields["rate"])
            for t in self._bar.tasks
        ]
        widths = (max(map(len, column)) for column in zip(*rows, strict=True))
        room = self._bar.console.width - sum(widths) - _BAR - _LEFT - 5  # 5 spaces
        shown: list[str] = []
        for term in _terms(task.fields["numbers"]):
            room -= len(term) + 2 * bool(shown)
            if room < 0:
                break
            shown.append(term)
        return Text("  ".join(shown), no_wrap=True)


def _terms(numbers: Mapping[str, float]) -> list[str]:
    return [f"{key} {_brief(value)}" for key, value in numbers.items()]


def _brief(value: float) -> str:
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def counted(
    name: str, items: Collection[Item], unit: str, shown: bool = True
) -> Iterator[Item]:
    """Gives items one by one and shows how many are done."""
    with Steps(name, len(items), 0, shown, unit, brief=True) as steps:
        for number, item in enumerate(items):
            steps.update(number)
            yield item
        steps.update(len(items))


def in_notebook() -> bool:
    """Whether a notebook shows what this process prints."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


@contextlib.contextmanager
def bar(name: str, total: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A bar in a notebook; elsewhere one of characters, on standard error.

    Yields:
      A function of the steps that are done, and of numbers to show beside them.
    """
    with warnings.catch_warnings():  # without widgets, characters will do
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    with tqdm(total=total, desc=name, unit="step") as shown:

        def update(step: int, numbers: Mapping[str, float]) -> None:
            texts = {key: _brief(value) for key, value in numbers.items()}
            shown.set_postfix(texts, refresh=False)
            shown.update(step - shown.n)

        yield update


#: Those that ask a process to end: Ctrl-C, `kill`, and a terminal that is closed.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
]


class Stop:
    """True once a signal asked to end: the work ends after the call that runs."""

    def __init__(self) -> None:
        self._asked = False
        self._began: float | None = None
        self._longest = 0.0

    def __bool__(self) -> bool:
        return self._asked

    def begin_call(self) -> None:
        """Tells that another call of compiled steps begins."""
        now = time.monotonic()
        if self._began is not None:
            self._longest = max(self._longest, now - self._began)
        self._began = now

    def handle(self, number: int, frame: Any) -> None:
        """Answers a signal; the second raises KeyboardInterrupt."""
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        most = f", {self._longest:.0f} s at most" if self._longest >= 1 else ""
        line = f"stopping after the steps that run{most}; once more stops now"
        with contextlib.suppress(RuntimeError):  # amid another line
            print(f"\n{line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
    """Notes the first signal that asks to end and answers it; the work goes on.

    The caller looks at the result and ends in order. A second signal raises
    KeyboardInterrupt. Signals that are ignored (`nohup`) stay so.
    """
    stop = Stop()

    with contextlib.ExitStack() as stack:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                with contextlib.suppress(ValueError):  # not the main thread
                    previous = signal.signal(number, stop.handle)
                    stack.callback(signal.signal, number, previous)
        yield stop
