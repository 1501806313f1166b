"""Parametrizations start where they should, and mean what their settings say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax import ModelSpec, parametrizations

SPEC = ModelSpec("any", 8, 24, ("a",), 1, (0.45,) * 3, (0.225,) * 3)
ODD = ModelSpec("odd", 5, 15, ("a",), 1, (0.5,) * 3, (0.5,) * 3)
BOTH = [parametrizations.pixels(0.1), parametrizations.fourier()]


@pytest.mark.parametrize("spec", [SPEC, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("one", BOTH, ids=lambda one: one.name)
def test_a_clip_is_decoded_from_what_it_was_turned_into(one, spec):
    shape = (spec.frames, spec.size, spec.size, 3)
    clip = np.random.default_rng(0).uniform(0.02, 0.98, shape).astype(np.float32)
    parameters = one.init(jax.random.key(0), spec, clip)
    np.testing.assert_allclose(one.decode(parameters, spec), clip, atol=2e-4)


@pytest.mark.parametrize("one", BOTH, ids=lambda one: one.name)
def test_noise_is_grey_real_and_follows_its_key(one):
    parameters = one.init(jax.random.key(0), SPEC, None)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(parameters))
    pixels = one.decode(parameters, SPEC)
    assert pixels.shape == (8, 24, 24, 3) and 0 <= pixels.min() <= pixels.max() <= 1
    assert 0 < pixels.std() < 0.1 and abs(pixels.mean() - 0.45) < 0.05
    other = one.init(jax.random.key(1), SPEC, None)
    assert np.abs(one.decode(other, SPEC) - pixels).max() > 0.01


def spectrum(**settings):
    one = parametrizations.fourier(noise=1.0, **settings)
    keys = jax.random.split(jax.random.key(0), 16)
    decode = jax.vmap(lambda key: one.decode(one.init(key, SPEC, None), SPEC))
    x = jax.scipy.special.logit(jnp.clip(decode(keys), 1e-4, 1 - 1e-4)).mean(-1)
    return np.square(np.abs(np.fft.fftn(x, axes=(1, 2, 3)))).mean(0)


def test_decays_say_how_smooth_and_how_slow_videos_are():
    def share(of, **settings):
        power = spectrum(**settings)
        power[0, 0, 0] = 0
        return power[of].sum() / power.sum()

    fine, fast = np.s_[:, 6:19, 6:19], np.s_[2:7]
    assert share(fine, spatial_decay=2.0) < share(fine) < share(fine, spatial_decay=0.5)
    by_tempo = [share(fast, temporal_decay=d) for d in (1.0, 0.0, -1.0)]
    assert by_tempo == sorted(by_tempo)


def test_colours_are_those_of_natural_pictures():
    one = parametrizations.fourier(noise=0.5)
    pixels = one.decode(one.init(jax.random.key(0), SPEC, None), SPEC)
    found = np.corrcoef(np.reshape(pixels, (-1, 3)).T)
    colours = np.array(parametrizations.COLOURS)
    covariance = colours @ colours.T
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found, covariance / np.outer(spread, spread), atol=0.06)


def test_pixels_stay_what_a_screen_can_show():
    one = parametrizations.pixels()
    wild = 100 * jax.random.normal(jax.random.key(0), (8, 24, 24, 3))
    pixels = one.decode(one.project(wild, SPEC), SPEC)
    assert -1e-6 <= pixels.min() and pixels.max() <= 1 + 1e-6
