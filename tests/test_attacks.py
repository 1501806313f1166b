"""Attacks stay small and mislead; training against them makes weights withstand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import ONE, model, moving_bars  # noqa: F401

from leaps_jax import UserError, attacks, training
from leaps_jax.attacks import Attack
from leaps_jax.training import Recipe


def norms(change):
    return np.sqrt(np.square(change).sum((1, 2, 3, 4)))


def test_an_attack_raises_the_loss_inside_its_ball_and_the_picture():
    pixels = jax.random.uniform(jax.random.key(0), (3, 4, 8, 8, 3))
    weights = jax.random.normal(jax.random.key(1), pixels.shape)

    def loss(pixels):
        return (weights * pixels).sum()

    attack = Attack(radius=0.7, steps=3, step=0.5)
    found = attacks.attacked(loss, jax.random.key(2), pixels, attack)
    assert 0 <= found.min() and found.max() <= 1
    assert (norms(found - pixels) <= 0.7 + 1e-5).all()
    gained = (weights * (found - pixels)).sum((1, 2, 3, 4))
    assert (gained > 0.5 * 0.7 * norms(weights)).all()  # a random change gains nothing
    # the radius of a schedule goes before the attack's own
    small = attacks.attacked(loss, jax.random.key(2), pixels, attack, radius=0.1)
    assert (norms(small - pixels) <= 0.1 + 1e-5).all()
    assert jnp.isfinite(
        attacks.attacked(lambda x: 0 * x.sum(), jax.random.key(0), pixels, attack)
    ).all()


def test_weights_that_were_trained_against_attacks_withstand_more(model):  # noqa: F811
    data, held_out = moving_bars(48, 0), moving_bars(24, 1)
    attack = Attack(radius=8.0)
    recipe = Recipe(steps=120, batch=16, learning_rate=1e-2, evaluations=1)
    *_, plain = training.train(model, data, held_out, recipe, ONE)
    against = dataclasses.replace(recipe, attack=attack)
    *_, robust = training.train(model, data, held_out, against, ONE)
    assert plain.robust_accuracy is None
    assert robust.accuracy >= 0.8
    before = training.evaluate_attacked(plain.model, held_out, attack.strong()).mean()
    assert robust.robust_accuracy > before + 0.5
    assert robust.robust_accuracy <= robust.accuracy + 0.1


def test_a_stronger_attack_misleads_more(model):  # noqa: F811
    data = moving_bars(30, 1)
    recipe = Recipe(steps=60, batch=16, learning_rate=1e-2, evaluations=1)
    *_, trained = training.train(model, moving_bars(48, 0), None, recipe, ONE)
    found = [
        training.evaluate_attacked(trained.model, data, Attack(r).strong()).mean()
        for r in (2.0, 8.0, 16.0)
    ]
    assert found[0] > found[-1] and sorted(found, reverse=True) == found
    # fewer clips: every other one, in batches that do not divide
    some = training.evaluate_attacked(trained.model, data, Attack(0.1), 15, batch=4)
    assert some.shape == (15,) and some.dtype == bool


def test_the_radius_grows_to_the_whole():
    recipe = Recipe(steps=100, attack=Attack(3.0), attack_warmup=0.4)
    found = [float(training._radius(recipe, step)) for step in (0, 20, 40, 99)]
    np.testing.assert_allclose(found, [0.6, 1.8, 3.0, 3.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attack(-1.0), "radius=-1.0: must be a positive number"),
        (lambda: Attack(float("inf")), "radius=inf"),
        (lambda: Attack(1.0, steps=0), "steps=0: must be at least 1"),
        (lambda: Attack(1.0, start=2.0), "start=2.0: must be from 0 to 1"),
        (lambda: Recipe(attack_warmup=-0.1), "attack_warmup=-0.1: must be a share"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
