"""Words of good commands, and what tests of commands have in common."""

import json
from pathlib import Path

import jax
import numpy as np

CLASSES = ("bend", "jack", "run")

GOOD = {
    "model": "timesformer_small@{root}/weights",
    "stimulus": "{root}/clip.mp4",
    "label": "jack",
    "out": "{root}/out",
    "steps": 8,
    "set": "steps_per_call=4",
    "preview_every": 0,
}

TRAIN = {
    "model": "timesformer_small",
    "data": "{root}/tree",
    "out": "{root}/trained",
    "steps": 4,
    "batch": jax.device_count(),
    "frames": 2,
    "size": 16,
}

BENCH = {"model": "timesformer_small@{root}/weights", "steps": 1}


def moving(seed: int, frames: int = 12) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (1, 30, 40, 3))
    return np.concatenate([np.roll(noise, t, 2) for t in range(frames)]).astype("uint8")


def save_clip(path: Path, video: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, video=video)
    return path


def words_of(command: str, given: dict, **changed) -> list:
    """Turns {"steps": 8} into words; None takes an option away."""
    words = [command]
    for name, value in (given | changed).items():
        if value is not None:
            many = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name.replace('_', '-')}", *many]
    return words


def content(folder: Path) -> dict:
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
    }


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def assert_refused(call, root, words, expected):
    before = content(root)
    refused = call(*words)
    assert refused.code == 2
    (line,) = refused.err.splitlines()
    assert line.startswith("leaps-jax") and "error: " in line
    for part in expected:
        assert part in line
    assert not refused.out
    assert content(root) == before, "something was written"
