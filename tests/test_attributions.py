"""Attribution: it adds up, and falls where the model looks."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from leaps_jax import Model, UserError, taps
from leaps_jax.attributions import METHODS, attribution, overlay
from leaps_jax.models.layers import ConvStem


class Corner(nn.Module):
    """Looks at the upper left quarter of the first two frames alone."""

    @nn.compact
    def __call__(self, x):
        seen = x[:, :2, :16, :16].reshape(len(x), -1)
        return nn.Dense(5)(nn.gelu(nn.Dense(8)(seen)))


class NormFirst(nn.Module):
    """Normalises after its first convolution, as transformers with a stem do."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(ConvStem((4, 8))(x).mean((1, 2, 3)))


@pytest.fixture(scope="module")
def norm_first(tiny):
    variables = NormFirst().init(jax.random.key(0), np.zeros((1, 4, 32, 32, 3)))
    how = {"mean": (0.45,) * 3, "std": (0.225,) * 3}
    return Model(NormFirst(), variables, dataclasses.replace(tiny.spec, **how))


@pytest.fixture(scope="module")
def corner(tiny):
    variables = Corner().init(jax.random.key(0), np.zeros((1, 4, 32, 32, 3)))
    return Model(Corner(), variables, tiny.spec)


@pytest.mark.parametrize("network", ["tiny", "norm_first"])
def test_integrated_gradients_add_up_to_the_difference_of_the_logits(
    request, stimuli, network
):
    model, videos, labels = request.getfixturevalue(network), stimuli[:2], ["run", 0]
    heat = attribution(model, videos, labels, steps=100, batch=16)
    assert heat.shape == (2, 4, 32, 32) and heat.dtype == np.float32
    black = np.zeros_like(videos)
    before, after = (np.asarray(taps.predict(model, v)) for v in (black, videos))
    expected = (after - before)[[0, 1], [3, 0]]
    assert np.abs(expected).min() > 0.05
    np.testing.assert_allclose(heat.sum((1, 2, 3)), expected, rtol=1e-2)


def test_the_size_of_the_chunks_changes_nothing(tiny, stimuli):
    one, other = (
        attribution(tiny, stimuli[0], 2, steps=7, batch=batch) for batch in (3, 50)
    )
    assert one.shape == (4, 32, 32)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_gradient_x_input_is_what_it_says(tiny, stimuli):
    def logit(video):
        return taps.predict(tiny, video[None])[0, 2]

    found = attribution(tiny, stimuli[0], 2, "gradient_x_input", baseline=0.25)
    expected = (stimuli[0] - 0.25) * jax.grad(logit)(stimuli[0])
    np.testing.assert_allclose(found, expected.sum(-1), atol=1e-5)
    found = attribution(
        tiny, stimuli[0], 2, "gradient_x_input", baseline=0.25, absolute=True
    )
    np.testing.assert_allclose(found, np.abs(expected).sum(-1), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_model_does_not_look_at_gets_nothing(method, corner, stimuli):
    heat = attribution(corner, stimuli[0], 1, method, steps=4)
    assert (heat[:2, :16, :16] != 0).mean() > 0.99
    assert np.abs(heat[2:]).max() == 0
    assert np.abs(heat[:, 16:]).max() == np.abs(heat[:, :, 16:]).max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "gradients"}, "method='gradients': unknown"),
        ({"video": np.zeros((4, 32, 30, 3))}, r"must be \(4, 32, 32, 3\), or"),
        ({"label": "wlk"}, "did you mean walk"),
        ({"label": [0, 1]}, "2 labels for 1 videos"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"baseline": np.zeros((2, 2))}, r"baseline of shape \(2, 2\): must broadcast"),
    ],
)
def test_mistakes_are_told_in_one_line(tiny, stimuli, change, message):
    with pytest.raises(UserError, match=message) as caught:
        attribution(**({"model": tiny, "video": stimuli[0], "label": 0} | change))
    assert "\n" not in str(caught.value)


def test_overlay_is_red_for_and_blue_against_and_grey_elsewhere():
    video = np.full((2, 3, 16, 16, 3), 0.5, np.float32)
    heat = np.zeros((2, 3, 16, 16))
    heat[:, 0, :4], heat[:, 1, -4:] = 2.0, -2.0
    shown = overlay(video, heat, blur=0)
    assert shown.shape == video.shape and 0 <= shown.min() and shown.max() <= 1
    red, _, blue = np.moveaxis(shown, -1, 0)
    assert (red - blue)[:, 0, :4].min() > 0.5 and (blue - red)[:, 1, -4:].min() > 0.5
    assert np.ptp(shown[:, 2], axis=-1).max() < 1e-6
    # each video by its own strongest pixels; smoothed, neighbours are coloured, too
    scaled = heat * np.array([1, 100])[:, None, None, None]
    np.testing.assert_allclose(overlay(video, scaled, blur=0), shown, atol=1e-6)
    assert np.ptp(overlay(video, heat, blur=2)[:, 0, 5], axis=-1).min() > 0.01
    with pytest.raises(UserError, match="must be one number a pixel"):
        overlay(video, heat[:, :2])
