"""A run killed at any moment and started again ends as one that was left alone."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from leaps_jax import Config, UserError, objectives
from leaps_jax.runs import folder as runs
from leaps_jax.runtime.engine import Engine, NotFiniteError
from leaps_jax.synthesis import prepare
from leaps_jax.zoo import states

TESTS = Path(__file__).parent.parent

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from conftest import make_tiny
from leaps_jax import Config
from leaps_jax.runs import folder as runs
from leaps_jax.synthesis import prepare

tiny = make_tiny(0)
stimuli = np.random.default_rng(0).random((2, 4, 32, 32, 3), np.float32)
config = Config(steps=120, steps_per_call=10)
problem = prepare(tiny, stimuli, [0, 1], make_tiny(1), config)
runs.execute(
    Path(sys.argv[1]), problem, {"name": "resume"}, {"self": tiny},
    save_every=0.0, preview_every=0,
)
"""


def start(folder: Path) -> subprocess.Popen:
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )


def lines(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_killed_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    for _ in range(2):
        before = len(lines(killed))
        process = start(killed)
        while process.poll() is None and len(lines(killed)) < before + 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads((killed / "run.json").read_text())["status"] == "running"
    assert start(killed).wait() == 0
    a, b = np.load(whole / "videos.npz"), np.load(killed / "videos.npz")
    for key in ("videos", "stimuli", "labels"):
        np.testing.assert_array_equal(a[key], b[key])
    assert lines(whole) == lines(killed)
    assert [line["step"] for line in lines(killed)] == list(range(10, 121, 10))


def test_ctrl_c_keeps_what_there_is(tmp_path):
    folder = tmp_path / "run"
    process = start(folder)
    while not lines(folder):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "stopped" and 0 < record["step"] < 120
    assert np.load(folder / "videos.npz")["videos"].shape == (2, 4, 32, 32, 3)
    assert (folder / "videos" / "000_bend.mp4").exists()


@pytest.fixture
def problem(tiny, stimuli):
    return prepare(tiny, stimuli[:1], [2], config=Config(steps=8, steps_per_call=4))


def test_a_run_that_is_not_finite_keeps_the_last_good_state(
    tmp_path, tiny, problem, monkeypatch
):
    """The second call of the compiled steps meets a NaN."""
    whole = Engine.run

    def failing(*args):
        first = next(whole(*args))
        yield first
        good = first.state()
        snapshot = dataclasses.replace(first, state=lambda: good)
        raise NotFiniteError("priming not finite at step 4", snapshot)

    monkeypatch.setattr(Engine, "run", failing)
    with pytest.raises(NotFiniteError):
        runs.execute(tmp_path / "run", problem, {}, {"self": tiny})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed" and "priming" in record["error"]
    kept = states.restore_videos(tmp_path / "run" / "state", problem.init_state())
    assert kept.step.tolist() == [4]
    assert (tmp_path / "run" / "videos.npz").exists()


def test_a_failed_run_fails_the_same_way_again(tmp_path, tiny, stimuli):
    """Started again, it meets the same NaN at a step whose state is saved already."""

    def explode(context):
        return jax.numpy.log(-jax.numpy.square(context.video).mean((1, 2, 3, 4)))

    objective = objectives.cross_entropy() + objectives.term("explosive", explode)
    config = Config(steps=8, steps_per_call=4)
    problem = prepare(tiny, stimuli[:1], [2], config=config, objective=objective)
    for _ in range(2):
        with pytest.raises(NotFiniteError, match="explosive.*at step 0"):
            runs.execute(tmp_path / "run", problem, {}, {"self": tiny})
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert record["status"] == "failed" and record["judges"]["self"]["of"] == 1


def test_metrics_of_a_step_are_raw_and_weighted(tmp_path, tiny, problem):
    runs.execute(tmp_path / "run", problem, {}, {"self": tiny}, preview_every=0)
    first, line = lines(tmp_path / "run")
    assert (first["step"], line["step"]) == (4, 8)  # the last of every call
    for name, weight in problem.objective.weights.items():
        (raw,), (weighted,) = line["raw"][name], line["weighted"][name]
        assert weighted == pytest.approx(weight * raw, rel=1e-4)
    total = sum(value[0] for value in line["weighted"].values())
    assert line["total"][0] == pytest.approx(total, rel=1e-4)


def test_a_finished_run_asks_a_new_judge_and_nothing_else(
    tmp_path, tiny, verifier, problem
):
    folder = tmp_path / "run"
    first = runs.execute(folder, problem, {}, {"self": tiny}, preview_every=0)
    videos = (folder / "videos.npz").read_bytes()
    assert "other: " not in (folder / "index.html").read_text()
    judges = {"self": tiny, "other": verifier}
    second = runs.execute(folder, problem, {}, judges, preview_every=0)
    assert second["judges"]["self"] == first["judges"]["self"]
    assert second["judges"]["other"]["of"] == 1
    assert json.loads((folder / "run.json").read_text()) == second
    assert (folder / "videos.npz").read_bytes() == videos
    assert "other: " in (folder / "index.html").read_text()


def test_a_state_of_another_shape_is_refused(tmp_path, tiny, stimuli, problem):
    states.save(tmp_path / "state", 3, problem.init_state())
    other = prepare(tiny, stimuli[:2], [0, 1], config=problem.config)
    with pytest.raises(UserError, match="of another shape"):
        states.restore_videos(tmp_path / "state", other.init_state())
