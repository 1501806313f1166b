"""Clips and renderings come in the order and number that a training expects."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax import ModelSpec
from leaps_jax.data.augmentation import Augmentation
from leaps_jax.data.datasets import Clips, Renderings

SPEC = ModelSpec("tiny", 4, 32, ("left", "right"))


def noise(key, label):
    """Another clip for every key."""
    return jax.random.uniform(key, (4, 32, 32, 3)), jnp.full((4, 1, 2), 0.5)


RENDERED = Renderings(noise, ("left", "right"), joints=1, count=40)


def test_every_clip_is_seen_once_before_any_again():
    clips = Clips([np.zeros((9, 36, 44, 3), np.uint8)] * 6, np.arange(6), ("a",) * 6)
    source = clips.batches(SPEC, size=3, seed=0)
    for _ in range(3):
        labels = np.concatenate([next(source)[2], next(source)[2]])
        assert sorted(labels) == list(range(6))


def test_an_evaluation_is_on_the_same_renderings_every_time():
    first, again, other = (
        list(data.windows(SPEC, 4))
        for data in (RENDERED, RENDERED, dataclasses.replace(RENDERED, seed=1))
    )
    assert len(first) == len(RENDERED.labels) == 40
    assert {clip.shape for clip in first} == {(1, 4, 32, 32, 3)}
    np.testing.assert_array_equal(first, again)
    assert all((a != b).any() for a, b in zip(first, other, strict=True))
    assert len({clip.tobytes() for clip in first}) == 40


def test_renderings_of_an_evaluation_are_of_their_labels():
    def draw(key, label):
        return jnp.full((4, 32, 32, 3), label / 4.0), jnp.zeros((4, 0, 2))

    data = Renderings(draw, tuple("abc"), count=35)
    shown = [4 * clip.mean() for clip in data.windows(SPEC, 1)]
    np.testing.assert_allclose(shown, data.labels)
    assert np.bincount(data.labels).tolist() == [12, 12, 11]


def test_no_rendering_to_train_on_is_one_to_evaluate_on():
    source = RENDERED.batches(SPEC, size=8, seed=0)
    views = jax.jit(RENDERED.views(SPEC, Augmentation(0.6, 0.3, False)))
    drawn = []
    for step in range(5):
        (labels,) = next(source)
        pixels, same, joints = views(jax.random.key(step), labels)
        np.testing.assert_array_equal(same, labels)
        assert joints.shape == (8, 4, 1, 2)
        drawn += list(np.asarray(pixels))
    held_out = {clip.tobytes() for clip in RENDERED.windows(SPEC, 1)}
    assert len({clip.tobytes() for clip in drawn} - held_out) == 40
