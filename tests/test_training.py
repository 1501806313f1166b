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


RENDERED = training.Renderings(bar, ("left", "right"), joints=1, count=40)


def test_training_learns_from_renderings(model):
    recipe = Recipe(steps=120, batch=16, learning_rate=1e-2, evaluations=1)
    *_, last = training.train(model, RENDERED, RENDERED, recipe, ONE)
    assert last.accuracy >= 0.9
    predicted = training.evaluate(last.model, RENDERED).argmax(1)
    assert (predicted == RENDERED.labels).mean() == last.accuracy


def test_an_evaluation_is_on_the_same_renderings_every_time(model):
    first, again, other = (
        list(data.windows(model.spec, 4))
        for data in (RENDERED, RENDERED, dataclasses.replace(RENDERED, seed=1))
    )
    assert len(first) == len(RENDERED.labels) == 40
    assert {clip.shape for clip in first} == {(1, 4, 32, 32, 3)}
    np.testing.assert_array_equal(first, again)
    assert all((a != b).any() for a, b in zip(first, other, strict=True))
    assert len({clip.tobytes() for clip in first}) == 40


def test_renderings_of_an_evaluation_are_of_their_labels(model):
    def draw(key, label):
        return jnp.full((4, 32, 32, 3), label / 4.0), jnp.zeros((4, 0, 2))

    data = training.Renderings(draw, tuple("abc"), count=35)
    shown = [4 * clip.mean() for clip in data.windows(model.spec, 1)]
    np.testing.assert_allclose(shown, data.labels)
    assert np.bincount(data.labels).tolist() == [12, 12, 11]


def test_no_rendering_to_train_on_is_one_to_evaluate_on(model):
    recipe = Recipe(batch=8)
    source = RENDERED.batches(model.spec, recipe)
    views = jax.jit(RENDERED.views(model.spec, recipe))
    drawn = []
    for step in range(5):
        (labels,) = next(source)
        pixels, same, joints = views(jax.random.key(step), labels)
        np.testing.assert_array_equal(same, labels)
        assert joints.shape == (8, 4, 1, 2)
        drawn += list(np.asarray(pixels))
    held_out = {clip.tobytes() for clip in RENDERED.windows(model.spec, 1)}
    assert len({clip.tobytes() for clip in drawn} - held_out) == 40


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


def hints_of(joints: np.ndarray, times: int, side: int) -> np.ndarray:
    """What a token should tell of one joint: how near it is, and its motion."""
    at = side * joints.reshape(times, -1, 2).mean(1)  # in cells
    truth = np.zeros((1, times, side * side, 3), np.float32)
    for t, n in np.ndindex(times, side * side):
        cell = np.array([n % side, n // side]) + 0.5
        near = np.exp(-np.square(cell - at[t]).sum())
        truth[0, t, n, 0] = near
        truth[0, t, n, 1:] = near * np.gradient(at, axis=0)[t] / (near + 0.1)
    return truth


@pytest.mark.parametrize("times", [4, 2], ids=["frames", "tubelets"])
@pytest.mark.parametrize("token", [False, True], ids=["grid", "class token"])
def test_a_perfect_answer_loses_nothing_and_none_loses_one(times, token):
    x = np.linspace(0.2, 0.8, 4)
    joints = np.stack([x, 0.5 + 0.3 * x], -1)[None, :, None]  # b t j 2
    truth = hints_of(joints, times, 4)
    if token:
        truth = np.concatenate([np.full_like(truth[:, :, :1], 9.0), truth], 2)
    found = {
        "norm": taps.Tap("norm", jnp.zeros((1, times, 16, 3)), 1),
        "mlp": taps.Tap("mlp", jnp.array(truth), 1),
        "no grid": taps.Tap("no grid", jnp.zeros((1, 7, 3)), None),
    }
    head = {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}
    assert training.hint_loss(head, found, joints) < 1e-6
    none = jax.tree.map(jnp.zeros_like, head)
    assert training.hint_loss(none, found, joints) == pytest.approx(1, abs=1e-3)
    elsewhere = joints[..., ::-1]
    assert training.hint_loss(head, found, elsewhere) > 0.3


def test_hints_need_a_grid_of_tokens():
    tap = taps.Tap("norm", jnp.zeros((1, 4, 6, 3)), 1)
    with pytest.raises(UserError, match="no square grid"):
        training.hint_loss({}, {"norm": tap}, jnp.zeros((1, 4, 1, 2)))


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
