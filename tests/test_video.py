"""What another model is shown of a video."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TinyNet

from leaps_jax import Config, objectives, update
from leaps_jax import video as video_lib
from leaps_jax.runtime import parallel
from leaps_jax.update import Batch, Frozen


@pytest.mark.parametrize(
    ("available", "frames"), [(8, 4), (16, 5), (8, 3), (5, 1), (4, 4), (3, 7)]
)
def test_frames_are_taken_evenly(available, frames):
    video = np.random.default_rng(0).random((2, available, 6, 6, 3), np.float32)
    want = video[:, np.arange(frames) * available // frames]
    np.testing.assert_array_equal(video_lib.fit(jnp.array(video), frames, 6), want)


@pytest.mark.parametrize("available", [8, 16, 32])
def test_the_gradient_of_evenly_spaced_frames_is_no_scatter(available):
    video = jax.ShapeDtypeStruct((2, available, 8, 8, 3), jnp.float32)

    def loss(video):
        return jnp.square(video_lib.fit(video, 4, 6)).sum()

    assert "scatter" not in jax.jit(jax.grad(loss)).lower(video).as_text()


class HalfNet(TinyNet):
    dtype: Any = jnp.bfloat16


@pytest.mark.parametrize(
    ("net", "precision"), [(TinyNet(), jax.lax.Precision.HIGHEST), (HalfNet(), None)]
)
def test_products_are_fast_where_the_verifier_rounds_more(
    tiny, verifier, stimuli, monkeypatch, net, precision
):
    taken = []

    def fit(*args):
        taken.append(args[-1])
        return real_fit(*args)

    real_fit = video_lib.fit
    monkeypatch.setattr(video_lib, "fit", fit)
    shown = dataclasses.replace(verifier, module=net)
    batch = Batch(jnp.array([1, 3]), jnp.ones(2), {})
    frozen = Frozen(tiny.variables, verifier.variables, {})

    setup = update.make_setup(tiny, shown, objectives.l2(), Config())

    def evaluate(videos):
        return update._evaluate(setup, videos, videos, batch, frozen)

    mapped = jax.vmap(evaluate, axis_name=parallel.AXIS)
    jax.eval_shape(mapped, jnp.array(stimuli[None, :2]))
    assert taken == [precision]
