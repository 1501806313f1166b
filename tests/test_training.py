"""Training learns a motion, augments without changing it, and loads back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax import ModelSpec, UserError, taps, training
from leaps_jax.data.datasets import Clips, Renderings
from leaps_jax.training import Recipe

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
    from tiny import TinyNet

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


# ---- renderings


def bar(key, label):
    """A bar that moves left or right, and where it is: what a renderer returns."""
    start, noise = jax.random.split(key)
    step = jnp.where(label == 0, -3, 3)
    left = jax.random.randint(start, (), 0, 32) + step * jnp.arange(4)
    lit = (jnp.arange(32) - left[:, None]) % 32 < 6  # t w
    pixels = 0.2 * jax.random.uniform(noise, (4, 32, 32, 3))
    pixels = jnp.where(lit[:, None, :, None], 0.9, pixels)
    x = (left + 3) % 32 / 32
    return pixels, jnp.stack([x, jnp.full(4, 0.5)], -1)[:, None]


RENDERED = Renderings(bar, ("left", "right"), joints=1, count=40)


def test_training_learns_from_renderings(model):
    recipe = Recipe(steps=120, batch=16, learning_rate=1e-2, evaluations=1)
    *_, last = training.train(model, RENDERED, RENDERED, recipe, ONE)
    assert last.accuracy >= 0.9
    predicted = training.evaluate(last.model, RENDERED).argmax(1)
    assert (predicted == RENDERED.labels).mean() == last.accuracy


def trained(model, **changed):
    recipe = Recipe(steps=4, batch=8, learning_rate=1e-2, **changed)
    *_, last = training.train(model, RENDERED, None, recipe, ONE)
    return last


@pytest.fixture(scope="module")
def plain(model):
    return trained(model)


def test_the_recipe_decides_a_training_and_old_moments_are_dropped(model, plain):
    """Moments that a model comes with are of the weights before the training."""
    moments = {"norm0": (np.zeros(8, np.float32), np.ones(8, np.float32))}
    again = trained(dataclasses.replace(model, moments=moments))
    for one, other in zip(
        jax.tree.leaves(plain.model.variables),
        jax.tree.leaves(again.model.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert again.model.moments is None


# ---- hints


def test_hints_change_the_training_and_leave_no_heads(model, plain):
    hinted = trained(model, hints=1.0)
    shapes = [jax.tree.map(jnp.shape, m.variables) for m in (hinted.model, model)]
    assert shapes[0] == shapes[1]
    kernels = [r.model.variables["params"]["conv2"]["kernel"] for r in (plain, hinted)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4
    assert hinted.loss > plain.loss + 0.1


def test_hints_are_refused_where_no_joints_are_known(model):
    with pytest.raises(UserError, match="hints=1.0: only rendered data") as error:
        next(training.train(model, moving_bars(2, 0), recipe=Recipe(hints=1.0)))
    assert "\n" not in str(error.value)
