"""Random changes of a video."""

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax import transforms


@pytest.mark.parametrize("form", ["here", "on_a_gpu"])
def test_every_video_is_rolled_by_itself_and_its_gradient_back(request, form):
    if form != "here":
        request.getfixturevalue(form)
    keys = jax.random.split(jax.random.key(0), 6)
    videos = jax.random.normal(keys[0], (6, 2, 7, 5, 3))
    rolled, back = jax.vjp(lambda v: jax.vmap(transforms.roll(9))(keys, v), videos)
    shifts = []
    for video, result in zip(np.asarray(videos), np.asarray(rolled), strict=True):
        every = [(i, j) for i in range(7) for j in range(5)]
        (shift,) = (s for s in every if (np.roll(video, s, (1, 2)) == result).all())
        shifts.append(shift)
    assert len(set(shifts)) > 3
    gradient = jax.random.normal(keys[1], videos.shape)
    for shift, given, taken in zip(shifts, gradient, back(gradient)[0], strict=True):
        want = jnp.roll(given, (-shift[0], -shift[1]), (1, 2))
        np.testing.assert_array_equal(taken, want)


def test_the_roll_of_a_gpu_is_a_kernel():
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    videos = jax.ShapeDtypeStruct((2, 4, 46, 46, 3), jnp.float32)

    def loss(keys, videos):
        return jnp.square(jax.vmap(transforms.roll(4))(keys, videos)).sum()

    text = checks.lowered_for_a_gpu(jax.grad(loss, 1), keys, videos)
    assert "triton" in text
    assert "scatter" not in text


def smooth_video(t=6, size=24):
    """A bright disc that moves to the right on grey."""
    y, x = np.mgrid[:size, :size]
    frames = [
        0.45 + 0.4 * np.exp(-((x - 6 - 2 * i) ** 2 + (y - 12) ** 2) / 12)
        for i in range(t)
    ]
    return jnp.asarray(np.repeat(np.stack(frames)[..., None], 3, -1), jnp.float32)


def place(video):
    """Centre (t, 2) and size (t,) of what is brighter than grey."""
    weight = np.maximum(np.asarray(video)[..., 0] - 0.45, 0) + 1e-9
    y, x = np.mgrid[: weight.shape[1], : weight.shape[2]]
    total = weight.sum((1, 2))
    centre = np.stack([(weight * a).sum((1, 2)) / total for a in (y, x)], -1)
    spread = (weight * (y - centre[:, :1, None]) ** 2).sum((1, 2)) / total
    return centre, np.sqrt(spread)


def seen(transform, video, seeds=12):
    keys = jax.random.split(jax.random.key(1), seeds)
    return jax.vmap(transform, (0, None))(keys, video)


def test_a_view_of_nothing_changes_nothing():
    video = smooth_video()
    np.testing.assert_allclose(
        transforms.view()(jax.random.key(0), video), video, atol=1e-6
    )


def test_a_view_moves_all_frames_alike_and_never_wraps():
    video = smooth_video()
    before, size = place(video)
    moved = [place(v) for v in seen(transforms.view(shift=0.1), video)]
    shifts = np.stack([after - before for after, _ in moved])
    assert np.ptp(shifts, axis=1).max() < 0.2, "frames move apart"
    assert 0.5 < np.abs(shifts).max() <= 0.1 * 24 + 0.2
    assert len(np.unique(shifts[:, 0, 0].round(3))) == 12, "videos move together"
    zoomed = [place(v)[1] / size for v in seen(transforms.view(scale=0.3), video)]
    factors = np.stack(zoomed).mean(1)
    assert 0.7 < factors.min() < 0.95 and 1.05 < factors.max() < 1.4
    beyond = seen(transforms.view(shift=0.5), jnp.ones((2, 8, 8, 3)))
    assert beyond.min() == pytest.approx(0.45) and beyond.max() == pytest.approx(1)


def test_a_view_in_time_plays_sooner_faster_or_slower():
    video = smooth_video()
    speed = [
        np.diff(place(v)[0][1:-1, 1]).mean()
        for v in seen(transforms.view(tempo=0.3), video)
    ]
    assert min(speed) < 1.8 and max(speed) > 2.2 and min(speed) > 0
    starts = [place(v)[0][0, 1] for v in seen(transforms.view(delay=0.3), video)]
    assert np.ptp(starts) > 1
    # before the first frame the video stands still
    assert min(starts) >= place(video)[0][0, 1] - 1e-3


def test_noise_and_tint_have_the_strength_that_they_say():
    video = smooth_video()
    noise = np.asarray(seen(transforms.noise(0.1), video, 40) - video)
    assert abs(noise.std() - 0.1) < 0.005 and abs(noise.mean()) < 0.01
    tint = np.asarray(seen(transforms.tint(0.1), video, 200) - video)
    assert np.ptp(tint, axis=(1, 2, 3)).max() < 1e-6, "one colour for all pixels"
    assert abs(tint[:, 0, 0, 0].std() - 0.1) < 0.02


def test_a_gradient_reaches_every_frame_through_a_view():
    video = smooth_video()
    transform = transforms.chain(
        transforms.view(0.2, 0.1, 0.1, 0.1), transforms.noise(0.1), transforms.tint(0.1)
    )
    loss = jax.grad(lambda v: jnp.square(transform(jax.random.key(3), v)).sum())
    gradient = loss(video)
    assert jnp.isfinite(gradient).all()
    assert (jnp.abs(gradient).max((1, 2, 3)) > 0).all()
