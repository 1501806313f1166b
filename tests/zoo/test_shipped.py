"""The weights that come with the project load by name and know the actions."""

import functools
import json

import jax
import numpy as np
import pytest

from leaps_jax import attacks, evaluation, taps
from leaps_jax.actions import scenes
from leaps_jax.actions.motions import CLASSES
from leaps_jax.model import FPS
from leaps_jax.zoo import load as loading
from leaps_jax.zoo import references

NAMES = ("slow_r50_tiny", "x3d_xs", "timesformer_small", "vivit_small")
WITHOUT_BATCH_NORM = ("timesformer_small", "vivit_small")
MIB = 2**20


ROBUST = ("slow_r50_tiny@robust", "timesformer_small@robust", "vivit_small@robust")
ALL = (*(f"{name}@actions" for name in NAMES), *ROBUST)


@functools.cache
def model(reference):
    return loading.load_model(reference)


@functools.cache
def renderings(frames, size, stride):
    """One clip a class; one by one, so that models of a size share a compilation."""
    draw = functools.partial(scenes.clip, frames=frames, size=size, fps=FPS / stride)
    keys = [jax.random.key(1000 + i) for i in range(len(CLASSES))]
    return np.stack([draw(key, i)[0] for i, key in enumerate(keys)])


def folder(reference):
    name, _, weights = reference.partition("@")
    return references.shipped(name)[weights]


def bytes_of(reference):
    return sum(path.stat().st_size for path in folder(reference).rglob("*"))


def test_the_folders_are_small():
    sizes = {name: bytes_of(name) / MIB for name in ALL}
    assert max(sizes.values()) <= 16, sizes
    assert sum(sizes.values()) <= 50, sizes


@pytest.mark.parametrize("reference", ALL)
def test_the_weights_load_and_can_verify(reference):
    loaded, name = model(reference), reference.partition("@")[0]
    assert loaded.spec.name == name and loaded.spec.classes == CLASSES
    leaves = jax.tree.leaves(loaded.variables)
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}, "half on disk alone"
    moments = taps.target_moments(loaded)
    assert list(moments) == taps.tap_names(loaded)
    assert all(np.isfinite(m).all() and (v > -1e-4).all() for m, v in moments.values())
    assert (loaded.moments is not None) == (name in WITHOUT_BATCH_NORM)


@pytest.mark.parametrize("reference", ALL)
def test_the_weights_say_how_they_were_made(reference):
    extra = json.loads((folder(reference) / "model.json").read_text())["extra"]
    assert extra["command"].startswith("leaps-jax train ")
    start = "--from" if reference in ROBUST else "--model"
    assert f"{start} {reference.partition('@')[0]}" in extra["command"]
    assert (reference in ROBUST) == ("--robust" in extra["command"])
    assert extra["recipe"]["seed"] == 0
    assert extra["device"] and extra["seconds"] > 0
    assert extra["accuracy"] > 0.95


@pytest.mark.parametrize("reference", ALL)
def test_the_weights_know_the_actions(reference):
    spec = model(reference).spec
    videos = renderings(spec.frames, spec.size, spec.stride)
    found = evaluation.judge(model(reference), videos, CLASSES)
    assert found["of"] == 23
    assert found["correct"] >= 20, list(zip(CLASSES, found["seen"], strict=True))


def test_robust_weights_withstand_what_misleads_the_standard_ones():
    robust, standard = (
        model(f"slow_r50_tiny@{weights}") for weights in ("robust", "actions")
    )
    spec, chosen = robust.spec, np.arange(0, 23, 3)
    clips = renderings(spec.frames, spec.size, spec.stride)[chosen]
    attack = attacks.Attack(radius=3.0, steps=4, step=0.5)
    withstood = [
        attacks.withstands(one, clips, chosen, attack).sum()
        for one in (robust, standard)
    ]
    assert withstood[0] >= 6 and withstood[1] <= 2, withstood
