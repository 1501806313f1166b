"""A run of which something was lost or damaged, or whose disk is full, goes on."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from leaps_jax import Config, UserError, files, objectives
from leaps_jax.runs import folder as runs
from leaps_jax.runs import ownership
from leaps_jax.runtime.engine import Engine
from leaps_jax.synthesis import prepare
from leaps_jax.zoo import states


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    """Compiles once for all tests."""
    changed = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in changed}
    for name, value in changed.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def problem(tiny):
    return prepare(
        tiny,
        None,
        [2],
        config=Config(steps=6, steps_per_call=2),
        objective=objectives.cross_entropy(),
    )


def run(folder: Path, problem, **changed) -> dict:
    how = {"save_every": 0.0, "preview_every": 0}
    return runs.execute(folder, problem, {}, {"self": problem.model}, **how | changed)


@pytest.fixture(scope="module")
def whole(problem, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, problem)
    return folder


@pytest.fixture
def begun(whole, problem, tmp_path, monkeypatch):
    """A run that was killed after four of its six steps."""
    to_the_end = Engine.run

    def stopped(*args):
        for snapshot in to_the_end(*args):
            yield snapshot
            if snapshot.step == 4:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Engine, "run", stopped)
        run(tmp_path / "run", problem)
    return tmp_path / "run"


def videos(folder: Path) -> np.ndarray:
    with np.load(folder / "videos.npz") as arrays:
        return arrays["videos"]


def assert_same(folder: Path, whole: Path) -> None:
    np.testing.assert_array_equal(videos(folder), videos(whole))
    records = [json.loads((f / "run.json").read_text()) for f in (folder, whole)]
    for key in ("status", "step", "final", "judges"):
        assert records[0][key] == records[1][key]


def flip(path: Path, places: np.ndarray) -> None:
    content = bytearray(path.read_bytes())
    for place in places:
        content[place % len(content)] ^= 1 << (place % 8)
    path.write_bytes(content)


def damage_last(folder: Path) -> None:
    for path in (folder / "state" / "4").rglob("*"):
        if path.is_file():
            flip(path, np.arange(0, 10**6, 97) if path.stat().st_size else [])


LOST = {
    "the last state is empty": lambda f: [
        shutil.rmtree(f / "state" / "4"),
        (f / "state" / "4").mkdir(),
    ],
    "the last state is damaged": damage_last,
    "all states are damaged": lambda f: (
        [shutil.rmtree(p / "d", ignore_errors=True) for p in (f / "state").iterdir()]
        + [(p / "_METADATA").unlink() for p in (f / "state").iterdir()]
    ),
    "no state": lambda f: shutil.rmtree(f / "state"),
    "an empty folder of states": lambda f: [
        shutil.rmtree(f / "state"),
        (f / "state").mkdir(),
    ],
    "no metrics": lambda f: (f / "metrics.jsonl").unlink(),
    "metrics that are binary": lambda f: (f / "metrics.jsonl").write_bytes(
        bytes(range(256)) * 3
    ),
    "metrics that are cut short": lambda f: os.truncate(f / "metrics.jsonl", 100),
    "a file of the system": lambda f: (f / ".DS_Store").touch(),
    "a state that was being written": lambda f: shutil.copytree(
        f / "state" / "4", f / "state" / "6.orbax-checkpoint-tmp-1"
    ),
}


@pytest.mark.parametrize("case", LOST)
def test_a_run_goes_on_without_what_was_lost(begun, whole, problem, case):
    LOST[case](begun)
    run(begun, problem)
    assert_same(begun, whole)
    assert sorted(p.name for p in (begun / "state").iterdir()) == ["4", "6"]
    if "metrics" not in case:
        metrics = [f / "metrics.jsonl" for f in (begun, whole)]
        assert metrics[0].read_text() == metrics[1].read_text()


@pytest.mark.parametrize("case", ["gone", "damaged", "gone with the states"])
def test_a_finished_run_without_videos_makes_them_again(whole, problem, tmp_path, case):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "videos.npz").unlink()
    if case == "damaged":
        (folder / "videos.npz").write_bytes(b"PK")
    elif case != "gone":
        shutil.rmtree(folder / "state")
    run(folder, problem)
    assert_same(folder, whole)


def test_every_flipped_bit_of_a_state_is_seen(tmp_path, problem):
    state = jax.device_get(problem.init_state())
    rng = np.random.default_rng(0)
    states.save(tmp_path / "state", 1, state)
    states.save(tmp_path / "state", 2, state.replace(step=state.step + 2))
    content = {p: p.read_bytes() for p in (tmp_path / "state" / "2").rglob("d/*")}
    path = max(content, key=lambda p: len(content[p]))
    for place in rng.integers(len(content[path]), size=8):
        flip(path, np.array([place]))
        found = states.restore_videos(tmp_path / "state", state)
        assert int(found.step[0]) in (0, 2)
        if int(found.step[0]) == 2:  # a byte that nothing reads
            np.testing.assert_array_equal(
                jax.tree.leaves(found)[0], jax.tree.leaves(state)[0]
            )
        path.write_bytes(content[path])


def test_one_process_at_a_time(tmp_path, problem):
    with ownership.alone(tmp_path / "run"), pytest.raises(UserError) as error:
        run(tmp_path / "run", problem)
    assert "another process works in it" in str(error.value)
    assert list((tmp_path / "run").iterdir()) == []


def test_overwriting_waits_for_no_live_run_and_spares_it(begun, problem):
    before = (begun / "metrics.jsonl").read_bytes()
    with ownership.alone(begun), pytest.raises(UserError, match="another process"):
        run(begun, problem, overwrite=True)
    assert (begun / "metrics.jsonl").read_bytes() == before


def test_a_folder_of_a_system_file_alone_is_vacant(tmp_path, problem, whole):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".DS_Store").touch()
    run(tmp_path / "run", problem)
    assert_same(tmp_path / "run", whole)


@contextlib.contextmanager
def full(monkeypatch, after: int):
    """A disk that has room for so many files."""
    left, fsync, append = [after], os.fsync, files.append_json_lines
    checkpointer = states.checkpointer

    def limited(call):
        def limited_call(*args):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            return call(*args)

        return limited_call

    with monkeypatch.context() as patch:
        patch.setattr("leaps_jax.files.os.fsync", limited(fsync))
        patch.setattr(files, "append_json_lines", limited(append))
        patch.setattr(states, "checkpointer", limited(checkpointer))
        yield left


def test_a_full_disk_at_any_write_loses_nothing(tmp_path, problem, whole, monkeypatch):
    for after in (0, 2, 5, 12):
        folder = tmp_path / str(after)
        with full(monkeypatch, after), pytest.raises(OSError, match="No space"):
            run(folder, problem)
        run(folder, problem)
        assert_same(folder, whole)
    with full(monkeypatch, 10**6) as left:
        run(tmp_path / "room", problem)
    assert 10**6 - left[0] >= 12


def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "lock"
    with files.locked(path) as one, files.locked(path) as two:
        assert (one, two) == (True, False)
    assert not path.exists()
    with files.locked(path) as free:
        assert free
    code = f"""
import os, pathlib
from leaps_jax import files
with files.locked(pathlib.Path({str(path)!r})) as free:
    os._exit(9 if free else 1)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert path.exists()
    with files.locked(path) as free:
        assert free
