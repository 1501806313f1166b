"""A training that was interrupted in any way ends as one that was left alone."""

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
from command import moving, save_clip, words_of

from leaps_jax import training
from leaps_jax.cli import main as cli
from leaps_jax.models import timesformer
from leaps_jax.runs import ownership
from leaps_jax.zoo import checkpoints, states

STEPS = 6
SMALL = {"depth": 1, "width": 16, "heads": 2}
TRAIN = {
    "model": "timesformer_small",
    "data": "{root}/tree",
    "eval_data": "{root}/tree",
    "steps": STEPS,
    "evaluations": STEPS,  # a report, and so a state, every step
    "batch": jax.device_count(),
    "frames": 2,
    "size": 16,
    "save_every": 0,
}
PROGRAM = f"""
import sys
from leaps_jax.cli.main import main
from leaps_jax.models import timesformer
timesformer.VARIANTS["timesformer_small"] |= {SMALL}
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setitem(timesformer.VARIANTS["timesformer_small"], name, value)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for number, label in enumerate(("bend", "jack", "run")):
        save_clip(root / "tree" / label / "0.npz", moving(number))
    return root


def words(clips: Path, out: Path, **changed) -> list[str]:
    given = words_of("train", TRAIN | {"out": out}, **changed)
    return [str(word).format(root=clips) for word in given]


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    """What a training that was left alone wrote."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setitem(timesformer.VARIANTS["timesformer_small"], name, value)
        assert cli.main(words(clips, out)) == 0
    return result(out)


def result(out: Path) -> dict:
    """All that two trainings must have in common, bit for bit."""
    facts = json.loads((out / "model.json").read_text())
    extra = {key: facts["extra"][key] for key in ("steps", "status", "accuracy")}
    moments = np.load(out / "moments.npz")
    moments = {name: moments[name].tobytes() for name in moments}
    names = sorted(path.name for path in out.iterdir())
    return {"digests": facts["digests"], "moments": moments, "names": names} | extra


def stopping(monkeypatch, step: int, stop) -> None:
    """Has a training call `stop` at the report of a step."""
    train = training.train

    def stopped(*args, **kwargs):
        for report in train(*args, **kwargs):
            yield report
            if report.step == step:
                stop()

    monkeypatch.setattr(training, "train", stopped)


@pytest.mark.parametrize("step", [1, 4])
def test_a_killed_training_goes_on(clips, whole, tmp_path, monkeypatch, step):
    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    with monkeypatch.context() as patch:
        stopping(patch, step, kill)
        with pytest.raises(Killed):
            cli.main(words(clips, tmp_path / "out"))
    assert not checkpoints.is_model(tmp_path / "out")
    began = []
    stopping(monkeypatch, step + 1, lambda: began.append(step + 1))
    assert cli.main(words(clips, tmp_path / "out")) == 0
    assert began and result(tmp_path / "out") == whole


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_a_checkpoint_and_the_state(
    clips, whole, tmp_path, capsys, monkeypatch, name
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopping(patch, 2, lambda: os.kill(os.getpid(), getattr(signal, name)))
        assert cli.main(words(clips, out)) == 130
    assert "stopped at step 3 of 6; the same command" in capsys.readouterr().err
    assert checkpoints.extra(out)["steps"] == 3
    assert cli.main(words(clips, out)) == 0
    assert result(out) == whole


def test_a_second_signal_ends_at_once(clips, whole, tmp_path, capsys, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopping(patch, 2, twice)
        assert cli.main(words(clips, out)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "leaps-jax: interrupted"
    assert cli.main(words(clips, out)) == 0
    assert result(out) == whole


def test_a_finished_training_is_left_as_it_is(clips, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(words(clips, out, steps=1)) == 0
    before = (out / "model.json").stat().st_mtime_ns
    assert cli.main(words(clips, out, steps=1)) == 0
    assert "is finished; --overwrite starts it again" in capsys.readouterr().out
    assert (out / "model.json").stat().st_mtime_ns == before
    assert cli.main(words(clips, out, steps=2)) == 2
    assert "differs in steps" in capsys.readouterr().err
    assert cli.main([*words(clips, out, steps=2), "--overwrite"]) == 0
    assert checkpoints.extra(out)["steps"] == 2


def test_a_device_that_fails(clips, whole, tmp_path, capsys, monkeypatch):
    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is lost\nat 0x0")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopping(patch, 3, fail)
        assert cli.main(words(clips, out)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("leaps-jax: failed: device: INTERNAL: the device is lost;")
    assert cli.main(words(clips, out)) == 0
    assert "at step 3" in capsys.readouterr().err and result(out) == whole


def test_one_training_at_a_time(clips, tmp_path, capsys):
    with ownership.alone(tmp_path / "out"):
        assert cli.main(words(clips, tmp_path / "out")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "another process works in it" in last


def full(monkeypatch, after: int) -> None:
    """A disk that has room for so many states, checkpoints and records."""
    left = [after]
    save, write_text = checkpoints.checkpointer, Path.write_text

    def room():
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device", "disk")

    def checkpointer():
        room()
        return save()

    monkeypatch.setattr(states, "checkpointer", checkpointer)
    monkeypatch.setattr(checkpoints, "checkpointer", checkpointer)

    def write(path, *args, **kwargs):
        room()
        return write_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", write)
    fsync = os.fsync

    def synced(number):
        room()
        fsync(number)

    monkeypatch.setattr("leaps_jax.files.os.fsync", synced)


@pytest.mark.parametrize("after", [0, 1, 4, 13, 14])
def test_a_full_disk_is_one_line_and_loses_nothing(
    clips, whole, tmp_path, capsys, monkeypatch, after
):
    with monkeypatch.context() as patch:
        full(patch, after)
        assert cli.main(words(clips, tmp_path / "out")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("leaps-jax: failed: ") and "No space left" in last
    assert cli.main(words(clips, tmp_path / "out")) == 0
    assert result(tmp_path / "out") == whole


def test_a_damaged_state_is_passed_over(clips, whole, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopping(patch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert cli.main(words(clips, out)) == 130
    last = out / ".training" / "states" / "4"
    for path in last.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[::-1])
    capsys.readouterr()
    assert cli.main(words(clips, out)) == 0
    assert "at step 3" in capsys.readouterr().err
    assert result(out) == whole


def test_a_loss_that_is_not_finite_keeps_the_last_good_weights(clips, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(words(clips, out, learning_rate=1e30)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "learning_rate=1e+30" in last and "holds the weights of step" in last
    assert checkpoints.extra(out)["status"] == "failed"
    checkpoints.load(out)


def test_a_class_that_is_not_utf_8_is_refused_at_once(clips, tmp_path, capsys):
    tree = tmp_path / "tree"
    save_clip(tree / "bend" / "0.npz", moving(0))
    save_clip(tree / os.fsdecode(b"caf\xe9") / "0.npz", moving(1))
    given = {"data": tree, "eval_data": tree}
    assert cli.main(words(clips, tmp_path / "out", **given)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not UTF-8; rename it" in line
    assert not (tmp_path / "out").exists()


def killed(clips: Path, out: Path, seconds: float) -> bool:
    """Kills a training that long after its first write; True where it was at work."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words(clips, out)], stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (out / ".training").exists():
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() != 0


def test_killed_at_two_moments(clips, tmp_path):
    """A process is compared with another; `test_killed.py` tries more moments."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert not killed(clips, whole, 600)
    for seconds in np.random.default_rng(2).uniform(0, 4, 2):
        if not killed(clips, out, seconds):
            assert result(out) == result(whole)
            out = out.with_name(f"{out.name}+")
    assert not killed(clips, out, 600)
    assert result(out) == result(whole)
