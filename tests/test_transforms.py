"""Random changes of a video."""

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

    lowered = jax.jit(jax.grad(loss, 1)).trace(keys, videos)
    text = lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in text
    assert "scatter" not in text
