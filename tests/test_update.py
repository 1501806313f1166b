"""The update step: what it does to frames, gradients and the noise it starts from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax import Config, objectives, preset, synthesize, taps, update, video
from leaps_jax.runtime.parallel import AXIS
from leaps_jax.terms import Primed


def test_octave_keeps_the_size(stimuli):
    small = video.at_octave(jnp.array(stimuli), 2, 1.5)
    assert small.shape == stimuli.shape
    # tiled: what stands at the left edge comes again after round(32 / 1.5 ** 2) pixels
    np.testing.assert_allclose(small[:, :, :, :14], small[:, :, :, 14:28], atol=1e-6)


def test_blur_spreads_gradients_over_space_and_time_by_itself():
    impulse = np.zeros((5, 9, 9, 3), np.float32)
    impulse[2, 4, 4] = 1
    plain = update.smooth(impulse, Config())
    np.testing.assert_array_equal(plain, impulse)
    space = np.asarray(update.smooth(impulse, Config(blur=1.5)))
    assert space[2, 4, 4, 0] > space[2, 4, 5, 0] > space[2, 4, 6, 0] > 0
    np.testing.assert_allclose(space[2], space[2].swapaxes(0, 1), rtol=1e-5)
    assert not space[[0, 1, 3, 4]].any(), "frames mix without temporal_blur"
    time = np.asarray(update.smooth(impulse, Config(temporal_blur=1.0)))
    assert time[2, 4, 4, 0] > time[3, 4, 4, 0] > 0
    assert np.count_nonzero(time[:, :, :, 0]) == np.count_nonzero(time[:, 4, 4, 0])


def test_the_settings_of_blur_and_noise_reach_the_videos(tiny, stimuli):
    def start(noise):
        config = preset("leaps", "pixels", noise=noise)
        setup = update.make_setup(tiny, None, objectives.l2(), config)
        return update.init_state(setup, [0])

    spreads = [float(np.std(start(noise).parameters)) for noise in (0.0, 0.1, 1.0)]
    assert spreads[0] == 0 < spreads[1] < spreads[2]

    def roughness(**settings):
        config = preset("leaps", "pixels", steps=6, steps_per_call=6, noise=0.0)
        config = dataclasses.replace(config, **settings)
        video = synthesize(tiny, stimuli[:1], [0], config=config).videos
        return np.abs(np.diff(video, axis=2)).mean() / video.std()

    assert roughness(blur=3.0) < 0.7 * roughness(blur=0.0)


def test_a_look_at_the_best_changes_nothing_else(tiny):
    """And sees the whole video, whatever the views and octaves of a step."""
    config = Config(steps=4, octaves=2, views=2)
    setup = update.make_setup(tiny, None, objectives.cross_entropy(), config)
    update_step = update.make_update_step(setup, octave=1)
    batch = update.Batch(jnp.array([1, 2]), jnp.array([1.0, 1.0]), Primed())

    @jax.jit
    def run(state, looks):
        frozen = update.Frozen(tiny.variables, None, {})
        mapped = jax.vmap(update_step, (0, None, None, None), axis_name=AXIS)
        state = jax.tree.map(lambda x: x[None], state)
        return jax.tree.map(lambda x: x[0], mapped(state, batch, frozen, looks))

    before, _ = run(update.init_state(setup, [0, 1]), False)
    assert (before.step == 1).all() and (before.best_loss == np.inf).all()
    after, metrics = run(before, True)
    logits = taps.predict(tiny, update.decode(setup, before.parameters))
    loss = -np.asarray(jax.nn.log_softmax(logits))[[0, 1], [1, 2]]
    np.testing.assert_allclose(after.best_loss, loss, rtol=1e-4)
    found = after.replace(best=before.best, best_loss=before.best_loss)
    jax.tree.map(np.testing.assert_array_equal, found, before)
    jax.tree.map(np.testing.assert_array_equal, after.best, before.parameters)

    lost = before.replace(finite=before.finite & False)
    after, _ = run(lost, True)
    assert not after.finite.any(), "a look cannot mend what was not finite"
    jax.tree.map(np.testing.assert_array_equal, after.best, before.parameters)
