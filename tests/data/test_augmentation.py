"""Augmentation changes the picture and not the motion."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.data.augmentation import Augmentation, random_view


def test_the_augmented_view_is_one_crop_for_all_frames_and_never_a_mirror():
    ramp = np.broadcast_to(
        np.linspace(0, 255, 44).astype(np.uint8)[None, None, :, None], (4, 36, 44, 3)
    )
    augmentation = Augmentation(0.6, colour=0.0, flip=False)
    for seed in range(5):
        view = random_view(
            jax.random.key(seed),
            jnp.array(ramp),
            jnp.array([36.0, 44.0]),
            32,
            augmentation,
        )
        assert view.shape == (4, 32, 32, 3)
        np.testing.assert_allclose(
            view, jnp.broadcast_to(view[:1], view.shape), atol=1e-5
        )
        assert (np.diff(view[0, 16, :, 0]) >= -1e-5).all(), "mirrored"
        assert 0 <= view.min() and view.max() <= 1
    mirrored = [
        random_view(
            jax.random.key(seed),
            jnp.array(ramp),
            jnp.array([36.0, 44.0]),
            32,
            dataclasses.replace(augmentation, flip=True),
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
        view = random_view(
            jax.random.key(seed),
            jnp.array(video),
            jnp.array([30.0, 40.0]),
            24,
            Augmentation(0.6, colour=0.0, flip=False),
        )
        assert view[:, 1:-1, 1:-1].min() > 0.98
