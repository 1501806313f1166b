"""Training learns a motion, augments without changing it, and loads back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax import ModelSpec, UserError, taps, training
from leaps_jax.training import Clips, Recipe

ONE = jax.devices()[:1]


def moving_bars(count: int, seed: int) -> Clips:
    """Bars that move left or right from anywhere: no single frame tells the class."""
    rng = np.random.default_rng(seed)
    videos, labels = [], []
    for number in range(count):
        label = number % 2
        video = rng.integers(0, 60, (rng.integers(9, 14), 36, 44, 3)).astype(np.uint8)
        start, step = rng.integers(44), (-3 if label == 0 else 3)
        for t, frame in enumerate(video):
            frame[:, (start + step * t + np.arange(8)) % 44] = 220
        videos.append(video)
        labels.append(label)
    return Clips(videos, np.array(labels, np.int32), ("left", "right"))


@pytest.fixture(scope="module")
def model(request):
    from conftest import TinyNet

    from leaps_jax import Model

    module = TinyNet(classes=2)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4, 32, 32, 3)))
    spec = ModelSpec("tiny", 4, 32, ("left", "right"), 1, (0.45,) * 3, (0.2,) * 3)
    return Model(module, variables, spec)


def test_training_learns_which_way_bars_move(model):
    recipe = Recipe(steps=120, batch=16, learning_rate=1e-2, evaluations=2)
    reports = list(
        training.train(model, moving_bars(48, 0), moving_bars(20, 1), recipe, ONE)
    )
    assert [r.step for r in reports if r.accuracy is not None] == [60, 120]
    assert reports[-1].accuracy >= 0.9
    assert reports[-1].loss < reports[0].loss
    stats = reports[-1].model.variables["batch_stats"]["norm0"]["mean"]
    assert np.abs(stats - model.variables["batch_stats"]["norm0"]["mean"]).max() > 0.01


def test_the_augmented_view_is_one_crop_for_all_frames_and_never_a_mirror():
    ramp = np.broadcast_to(
        np.linspace(0, 255, 44).astype(np.uint8)[None, None, :, None], (4, 36, 44, 3)
    )
    recipe = Recipe(colour=0.0)
    for seed in range(5):
        view = training.random_view(
            jax.random.key(seed), jnp.array(ramp), jnp.array([36.0, 44.0]), 32, recipe
        )
        assert view.shape == (4, 32, 32, 3)
        np.testing.assert_allclose(
            view, jnp.broadcast_to(view[:1], view.shape), atol=1e-5
        )
        assert (np.diff(view[0, 16, :, 0]) >= -1e-5).all(), "mirrored"
        assert 0 <= view.min() and view.max() <= 1
    mirrored = [
        training.random_view(
            jax.random.key(seed),
            jnp.array(ramp),
            jnp.array([36.0, 44.0]),
            32,
            dataclasses.replace(recipe, flip=True),
        )[0, 16, 0, 0]
        > 0.5
        for seed in range(12)
    ]
    assert any(mirrored) and not all(mirrored)


def test_the_view_stays_inside_the_picture():
    """Padding to the right of and below a smaller clip never shows."""
    video = np.zeros((2, 40, 60, 3), np.uint8)
    video[:, :30, :40] = 255
    for seed in range(8):
        view = training.random_view(
            jax.random.key(seed),
            jnp.array(video),
            jnp.array([30.0, 40.0]),
            24,
            Recipe(colour=0.0),
        )
        assert view[:, 1:-1, 1:-1].min() > 0.98


def test_every_clip_is_seen_once_before_any_again(model):
    clips = moving_bars(6, 0)
    clips = dataclasses.replace(clips, labels=np.arange(6, dtype=np.int32))
    source = clips.batches(model.spec, Recipe(batch=3))
    for _ in range(3):
        labels = np.concatenate([next(source)[2], next(source)[2]])
        assert sorted(labels) == list(range(6))


def test_evaluation_averages_views(model):
    clips = moving_bars(4, 0)
    probabilities = training.evaluate(model, clips, views=3)
    assert probabilities.shape == (4, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-4)


def test_a_model_without_batch_norm_gets_moments(model):
    assert training.with_moments(model, moving_bars(3, 0)) is model
    without = dataclasses.replace(
        model,
        tap_filter=lambda m, method: m.name == "head" and method == "__call__",
    )
    found = training.with_moments(without, moving_bars(3, 0))
    assert list(taps.target_moments(found)) == ["head/__call__"]


def test_bad_recipes_are_refused(model):
    with pytest.raises(UserError, match="batch=0"):
        Recipe(batch=0)
    with pytest.raises(UserError, match="no clips"):
        next(training.train(model, Clips([], np.zeros(0, np.int32), ("a",))))
