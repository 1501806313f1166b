"""The weights that come with the project load by name and know the actions."""

import functools
import json

import jax
import numpy as np
import pytest

from leaps_jax import evaluation, loading, stimuli, taps
from leaps_jax.actions import scenes
from leaps_jax.actions.motions import CLASSES

NAMES = ("slow_r50_tiny", "x3d_xs", "timesformer_small", "vivit_small")
WITHOUT_BATCH_NORM = ("timesformer_small", "vivit_small")
MIB = 2**20


@functools.cache
def model(name):
    return loading.load_model(f"{name}@actions")


@functools.cache
def renderings(frames, size, stride):
    """One clip a class; one by one, so that models of a size share a compilation."""
    draw = functools.partial(
        scenes.clip, frames=frames, size=size, fps=stimuli.FPS / stride
    )
    keys = [jax.random.key(1000 + i) for i in range(len(CLASSES))]
    return np.stack([draw(key, i)[0] for i, key in enumerate(keys)])


def folder(name):
    return loading.shipped(name)["actions"]


def bytes_of(name):
    return sum(path.stat().st_size for path in folder(name).rglob("*"))


def test_the_folders_are_small():
    sizes = {name: bytes_of(name) / MIB for name in NAMES}
    assert max(sizes.values()) <= 16, sizes
    assert sum(sizes.values()) <= 50, sizes


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_load_and_can_verify(name):
    loaded = model(name)
    assert loaded.spec.name == name and loaded.spec.classes == CLASSES
    moments = taps.target_moments(loaded)
    assert list(moments) == taps.tap_names(loaded)
    assert all(np.isfinite(m).all() and (v > -1e-4).all() for m, v in moments.values())
    assert (loaded.moments is not None) == (name in WITHOUT_BATCH_NORM)


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_say_how_they_were_made(name):
    extra = json.loads((folder(name) / "model.json").read_text())["extra"]
    assert extra["command"].startswith("leaps-jax train ")
    assert f"--model {name}" in extra["command"]
    assert extra["recipe"]["seed"] == 0
    assert extra["device"] and extra["seconds"] > 0
    assert extra["accuracy"] > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_know_the_actions(name):
    spec = model(name).spec
    videos = renderings(spec.frames, spec.size, spec.stride)
    found = evaluation.judge(model(name), videos, CLASSES)
    assert found["of"] == 23
    assert found["correct"] >= 20, list(zip(CLASSES, found["seen"], strict=True))
