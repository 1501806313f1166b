"""What a terminal shows of work that goes on, and what a log hears."""

import io
import itertools
import re

import numpy as np
import pytest
from rich.console import Console

from leaps_jax import ModelSpec, progress, taps, training
from leaps_jax.data import datasets
from leaps_jax.progress import Steps

TERMS = {"total": 1234.5, "cross entropy": 2.345678, "priming": 0.12345}
TERMS |= {"coherence": 3.2e-5, "diversity": 12.0, "spatial_tv": 1e7}


@pytest.fixture
def clock(monkeypatch):
    """A second passes whenever the time is asked for."""
    ticks = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


class Screen:
    def __init__(self, width: int):
        self.console = self._console(width)

    @staticmethod
    def _console(width: int) -> Console:
        return Console(file=io.StringIO(), width=width, force_terminal=True)

    def lines(self, steps: Steps) -> list[str]:
        """What is on the screen now."""
        console = self._console(self.console.width)
        console.print(steps._bar.get_renderable())
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
        return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("total", [7, 500, 12345])
def test_the_line_fits_and_what_matters_comes_first(clock, width, total):
    screen = Screen(width)
    with Steps("synthesize", total, console=screen.console) as steps:
        (line,) = screen.lines(steps)
        assert line.split() == [*line.split()[:2], f"0/{total}", "compiling", "-:--:--"]
        for step in (1, 2, 3):
            steps.update(step, TERMS)
        (line,) = screen.lines(steps)
    assert len(line) <= width and "…" not in line
    name, bar, count, rate, unit, left, *terms = line.split()
    assert (name, count, unit) == ("synthesize", f"3/{total}", "steps/s")
    assert float(rate) > 0 and re.fullmatch(r"[\d:-]+", left)
    assert len(bar) == 12, bar
    shown = "  ".join(f"{k} {progress._brief(v)}" for k, v in TERMS.items())
    found = line[line.index(left) + len(left) :].strip()
    assert shown.startswith(found)
    assert found == shown if width == 200 else len(found) < len(shown)
    if width >= 80:
        assert found.startswith("total 1234")


def test_an_evaluation_is_a_line_below_and_goes_away(clock):
    screen = Screen(60)
    with Steps("train", 2000, console=screen.console) as steps:
        steps.update(20, TERMS)
        with steps.part("evaluate", 2000, "clips") as part:
            above, below = screen.lines(steps)
            assert "train" in above and "20/2000" in above
            assert "evaluate" in below and "0/2000" in below and "compiling" in below
            part.update(32)
            part.update(64)
            above, below = screen.lines(steps)
            assert "64/2000" in below and "clips/s" in below
            assert max(len(above), len(below)) <= 60
        assert len(screen.lines(steps)) == 1


def test_what_is_read_counts_up_to_a_total_that_is_told(clock):
    screen = Screen(80)
    steps = Steps("read", unit="clips", waiting="", brief=True, console=screen.console)
    with steps:
        assert screen.lines(steps)[0].split()[0] == "read"
        steps.update(1, total=70)
        assert "1/70" in screen.lines(steps)[0]
        assert "compiling" not in screen.lines(steps)[0]


def test_a_log_gets_a_line_every_ten_seconds(clock, capsys):
    with Steps("train", 30) as steps:
        for step in range(1, 31):
            steps.update(step, {"loss": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert 4 <= len(lines) <= 6
    assert lines[0] == "train 0/30  compiling", "before anything is compiled"
    assert lines[-1].startswith("train 30/30") and lines[-1].endswith("loss 0.5")
    with Steps("read", 5, brief=True) as steps:
        for step in range(1, 6):
            steps.update(step)
    assert not capsys.readouterr().err, "it was over before anybody wondered"


def test_a_count_of_items(capsys):
    assert list(progress.counted("evaluate", ["a", "b"], "judges")) == ["a", "b"]


# ---- what the library tells


def test_evaluations_tell_how_far_they_are(tiny):
    videos = [np.zeros((n, 40, 50, 3), np.uint8) for n in (4, 9, 12, 5, 6)]
    data = datasets.Clips(videos, np.arange(5), tiny.spec.classes)
    seen: list[int] = []
    told = training.evaluate(tiny, data, 2, batch=4, progress=seen.append)
    assert seen == [2, 4, 5]
    np.testing.assert_array_equal(told, training.evaluate(tiny, data, 2, batch=4))


def test_a_training_tells_how_far_its_evaluations_are(tiny):
    videos = [np.zeros((9, 40, 50, 3), np.uint8)] * 5
    data = datasets.Clips(videos, np.arange(5), tiny.spec.classes)
    recipe = training.Recipe(steps=2, batch=8, evaluations=2, views=1)
    seen: list[tuple[int, int]] = []
    told = lambda *counts: seen.append(counts)  # noqa: E731
    assert len(list(training.train(tiny, data, data, recipe, progress=told))) == 2
    assert seen == [(1, 0), (1, 5), (2, 0), (2, 5)]


def test_moments_tell_how_far_they_are(tiny, stimuli):
    seen: list[int] = []
    told = taps.estimate_moments(tiny, stimuli, batch=2, progress=seen.append)
    assert seen == [2, 4, 5]
    assert told.keys() == taps.estimate_moments(tiny, stimuli).keys()


def test_the_library_draws_nothing(tiny, capsys):
    spec: ModelSpec = tiny.spec
    data = datasets.Clips(
        [np.zeros((4, 40, 40, 3), np.uint8)], np.zeros(1, int), spec.classes
    )
    training.evaluate(tiny, data)
    assert capsys.readouterr() == ("", "")
