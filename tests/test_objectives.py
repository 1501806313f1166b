"""Every term against numpy, every term descends, and the algebra adds up."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax import Config, UserError, objectives, taps
from leaps_jax import video as video_lib
from leaps_jax.taps import Tap
from leaps_jax.terms import Context, Primed
from leaps_jax.update import prime

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(2, 5)).astype(np.float32)
LABELS = np.array([1, 3])
VIDEO = RNG.normal(size=(2, 4, 6, 5, 3)).astype(np.float32)
FEATURE = RNG.normal(size=(2, 5, 3, 3, 7)).astype(np.float32)
TOKENS = RNG.normal(size=(2, 11, 6)).astype(np.float32)
PRIMED = {"a": RNG.normal(size=(2, 7)), "b": RNG.normal(size=(2, 6))}
PRIMED_BY_TIME = {
    cells: {"a": RNG.normal(size=(2, 5, cells**2, 7)).astype(np.float32)}
    for cells in (1, 2)
}


@pytest.fixture
def context() -> Context:
    tapped = {
        "a": Tap("a", jnp.array(FEATURE), 1),
        "b": Tap("b", jnp.array(TOKENS), None),
    }
    moments = {
        "a": (jnp.full(7, 0.3), jnp.full(7, 1.4)),
        "b": (jnp.full(6, -0.2), jnp.full(6, 0.6)),
    }
    return Context(
        video=jnp.array(VIDEO),
        logits=jnp.array(LOGITS),
        labels=jnp.array(LABELS),
        taps=tapped,
        primed=Primed(
            {k: jnp.array(v) for k, v in PRIMED.items()},
            PRIMED_BY_TIME,
        ),
        verifier_taps=tapped,
        verifier_moments=moments,
    )


def value(objective, context) -> np.ndarray:
    ((_, term),) = objective.terms
    loss = term.loss(context)
    assert loss.shape == (2,)
    return np.asarray(loss)


def test_cross_entropy_is_taken_of_logits(context):
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    expected = -np.log(p[[0, 1], LABELS])
    np.testing.assert_allclose(
        value(objectives.cross_entropy(), context), expected, rtol=1e-5
    )


def test_class_logit(context):
    np.testing.assert_allclose(
        value(objectives.class_logit(), context), -LOGITS[[0, 1], LABELS]
    )


def distance(a, b):
    dot = (a * b).sum(-1)
    return 1 - dot / ((a**2).sum(-1) + (b**2).sum(-1) - dot)


def test_priming_is_the_mean_jaccard_distance_of_all_taps(context):
    a = distance(FEATURE.mean((1, 2, 3)), PRIMED["a"])
    b = distance(TOKENS.mean(1), PRIMED["b"])
    np.testing.assert_allclose(
        value(objectives.priming(), context), (a + b) / 2, rtol=1e-5
    )
    profiled = objectives.priming(lambda depth: 2 * (1 - depth))
    np.testing.assert_allclose(value(profiled, context), a, rtol=1e-5)


def test_priming_per_step_compares_each_moment(context):
    primed = PRIMED_BY_TIME[1]["a"][:, :, 0]
    expected = distance(FEATURE.mean((2, 3)), primed).mean(1)
    term = objectives.priming(per_step=True)
    np.testing.assert_allclose(value(term, context), expected, rtol=1e-5)
    # in another order of the frames it is another loss; the mean over all is not
    backwards = Tap("a", jnp.array(FEATURE[:, ::-1]), 1)
    turned = dataclasses.replace(context, taps={**context.taps, "a": backwards})
    assert np.abs(value(term, turned) - expected).max() > 0.01
    whole = objectives.priming()
    np.testing.assert_allclose(value(whole, turned), value(whole, context), rtol=1e-5)
    timeless = dataclasses.replace(context, taps={"b": context.taps["b"]})
    with pytest.raises(UserError, match="priming_per_step: no tap"):
        term.terms[0][1].loss(timeless)


def test_priming_by_cells_compares_what_is_where(context):
    term = objectives.priming(per_step=True, cells=2)
    # the middle of three rows and columns belongs to both cells, by halves
    halves = np.array([[1, 0.5, 0], [0, 0.5, 1]]) / 1.5
    cells = np.einsum("ph,qw,bthwc->btpqc", halves, halves, FEATURE)
    expected = distance(cells.reshape(2, 5, 4, 7), PRIMED_BY_TIME[2]["a"])
    np.testing.assert_allclose(value(term, context), expected.mean((1, 2)), rtol=1e-4)
    # mirrored it is another loss; means over whole frames are not
    mirrored = Tap("a", jnp.array(FEATURE[:, :, :, ::-1]), 1)
    turned = dataclasses.replace(context, taps={"a": mirrored})
    before = dataclasses.replace(context, taps={"a": context.taps["a"]})
    assert np.abs(value(term, turned) - value(term, before)).max() > 0.01
    whole = objectives.priming(per_step=True)
    np.testing.assert_allclose(value(whole, turned), value(whole, before), rtol=1e-5)
    with pytest.raises(UserError, match="cells=2: .*per_step"):
        objectives.priming(cells=2)


@pytest.mark.parametrize("class_tokens", [0, 1])
def test_cells_of_tokens_leave_the_class_token_out(class_tokens):
    grid = RNG.normal(size=(2, 3, 4, 4, 5)).astype(np.float32)
    tokens = grid.reshape(2, 3, 16, 5)
    classes = np.full((2, 3, class_tokens, 5), 100, np.float32)
    tap = Tap("t", jnp.concatenate([classes, tokens], 2), 1)
    expected = grid.reshape(2, 3, 2, 2, 2, 2, 5).mean((3, 5)).reshape(2, 3, 4, 5)
    np.testing.assert_allclose(tap.mean_by_time(2), expected, rtol=1e-4)
    no_grid = Tap("t", jnp.array(tokens[:, :, :7]), 1)
    assert no_grid.mean_by_time(2).shape == (2, 3, 1, 5)


def test_jaccard_distance_is_bounded_and_zero_only_for_equal_vectors():
    a = jnp.array([1.0, -2.0, 0.5])
    assert objectives.jaccard_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert objectives.jaccard_distance(a, -a) == pytest.approx(4 / 3)
    assert objectives.jaccard_distance(a, 2 * a) > 0.1


def test_coherence_pairs_of_frames(context):
    frames = FEATURE.shape[1]
    expected = np.zeros(2)
    for t1, t2 in itertools.combinations(range(frames), 2):
        distance = np.abs(FEATURE[:, t1] - FEATURE[:, t2]).mean((1, 2, 3))
        expected += distance if t2 == t1 + 1 else np.maximum(0, 1.2 - distance)
    expected /= frames * (frames - 1) / 2
    np.testing.assert_allclose(
        value(objectives.coherence(margin=1.2), context), expected, rtol=1e-5
    )


def test_coherence_has_no_minimum_at_a_frozen_video(context):
    frozen = jnp.broadcast_to(jnp.array(FEATURE[:, :1]), FEATURE.shape)
    context = dataclasses.replace(context, taps={"a": Tap("a", frozen, 1)})
    assert (value(objectives.coherence(margin=0.5), context) > 0.2).all()


def test_coherence_uses_the_stated_time_axis(context):
    moved = Tap("a", jnp.moveaxis(jnp.array(FEATURE), 1, 3), 3)
    there = dataclasses.replace(context, taps={"a": moved})
    term = objectives.coherence()
    np.testing.assert_allclose(value(term, there), value(term, context), rtol=1e-6)


@pytest.mark.parametrize("axis", [1, 2])
def test_coherence_reads_time_from_a_sequence_of_tokens(context, axis):
    tokens = jnp.array(FEATURE).reshape(2, 5 * 9, 7)
    tokens = jnp.concatenate([jnp.full((2, 1, 7), 9.0), tokens], axis=1)
    tap = Tap("a", jnp.moveaxis(tokens, 1, axis), axis, time_steps=5)
    there = dataclasses.replace(context, taps={"a": tap})
    term = objectives.coherence()
    np.testing.assert_allclose(value(term, there), value(term, context), rtol=1e-6)


def test_diversity_matches_batch_moments(context):
    published, relative = 0.0, 0.0
    for feature, mean, var in ((FEATURE, 0.3, 1.4), (TOKENS, -0.2, 0.6)):
        flat, channels = feature.reshape(-1, feature.shape[-1]), feature.shape[-1]
        of_mean = np.linalg.norm(flat.mean(0) - mean)
        of_var = np.linalg.norm(flat.var(0) - var)
        published += of_mean + of_var
        relative += of_mean / np.sqrt(channels * (mean**2 + var)) / 2
        relative += of_var / (np.sqrt(channels) * var) / 2
    for term, expected in (
        (objectives.diversity(relative=False), published),
        (objectives.diversity(), relative),
    ):
        np.testing.assert_allclose(value(term, context), [expected] * 2, rtol=1e-5)


def test_diversity_of_a_tap_that_never_changes(context):
    # a learned token before it has seen anything, as in UniFormerV2
    token = jnp.arange(1.0, 7.0)
    more = {"c": Tap("c", jnp.broadcast_to(token, (2, 1, 6)), None)}
    known = {"c": (token, jnp.zeros(6))}
    with_token = dataclasses.replace(
        context,
        verifier_taps={**context.verifier_taps, **more},
        verifier_moments={**context.verifier_moments, **known},
    )
    for relative, share in ((True, 2 / 3), (False, 1.0)):
        diversity = objectives.diversity(relative)
        np.testing.assert_allclose(
            value(diversity, with_token), share * value(diversity, context), rtol=1e-5
        )


def test_pixel_priors(context):
    np.testing.assert_allclose(
        value(objectives.l2(), context), (VIDEO**2).mean((1, 2, 3, 4)), rtol=1e-5
    )
    down, across = np.diff(VIDEO, axis=2), np.diff(VIDEO, axis=3)
    np.testing.assert_allclose(
        value(objectives.spatial_tv(), context),
        np.abs(down).mean((1, 2, 3, 4)) + np.abs(across).mean((1, 2, 3, 4)),
        atol=2e-2,  # rounded off below 1e-2
    )
    np.testing.assert_allclose(
        value(objectives.temporal_tv(), context),
        np.abs(np.diff(VIDEO, axis=1)).sum((1, 2, 3, 4)) / VIDEO[0].size,
        atol=2e-2,
    )


def test_norm_has_a_gradient_of_zero_at_zero():
    assert jax.grad(objectives.norm)(jnp.zeros(3)).tolist() == [0, 0, 0]


ALL_TERMS = {
    "cross_entropy": objectives.cross_entropy(),
    "class_logit": objectives.class_logit(),
    "priming": objectives.priming(),
    "priming_per_step": objectives.priming(per_step=True),
    "priming_by_cells": objectives.priming(per_step=True, cells=2),
    "coherence": objectives.coherence(),
    "diversity": objectives.diversity(),
    "l2": objectives.l2(),
    "spatial_tv": objectives.spatial_tv(),
    "temporal_tv": objectives.temporal_tv(),
    "activation": objectives.activation(),
    "channel": objectives.channel("norm2", 3),
    "neuron": objectives.neuron(-1, 3),
    "direction": objectives.direction(-1, np.arange(16.0), cosine=1.0),
    "layer": objectives.layer("norm1"),
    "contrast": objectives.contrast(),
}


@pytest.mark.parametrize("name", ALL_TERMS)
def test_each_term_descends_in_every_video(name, tiny, verifier, stimuli):
    """Five steps against the gradient lower the term (Lucid's test of a gradient)."""
    objective = ALL_TERMS[name]
    primed = prime(tiny, tiny.variables, stimuli[:2], objective)
    moments = taps.target_moments(verifier)

    def loss(video):
        logits, tapped = taps.apply(tiny.module, tiny.variables, video, tiny.tap_filter)
        seen, verified = taps.apply(
            verifier.module, verifier.variables, video, verifier.tap_filter
        )
        labels = jnp.array([1, 3])
        context = Context(
            video, logits, labels, tapped, primed, seen, verified, moments
        )
        ((_, term),) = objective.terms
        values = objective.values(context)[term.name]
        return values.sum(), values

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    video = video_lib.normalize(jnp.array(stimuli[2:4]), tiny.spec)
    (_, first), gradient = step(video)
    assert jnp.isfinite(gradient).all()
    assert (jnp.abs(gradient).max((2, 3, 4)) > 0).all(), "a frame without gradient"
    for _ in range(5):
        scale = jnp.abs(gradient).max((1, 2, 3, 4), keepdims=True)
        video = video - 0.02 * gradient / scale
        (_, last), gradient = step(video)
    assert (last < first).all()


def test_algebra_scales_adds_and_leaves_operands_alone(context):
    a, b = objectives.cross_entropy(), objectives.l2()
    combined = 2 * a + 3 * b - b.named("other") * 0.5
    values = combined.values(context)
    expected = 2 * value(a, context) + 2.5 * value(b, context)
    np.testing.assert_allclose(combined.total(values), expected, rtol=1e-5)
    assert combined.weights == {"cross_entropy": 2, "l2": 3, "other": -0.5}
    assert a.weights == {"cross_entropy": 1} and b.weights == {"l2": 1}
    assert (-a).weights == {"cross_entropy": -1}


def test_algebra_refuses_what_it_cannot_mean():
    with pytest.raises(TypeError, match="scaled by a number"):
        objectives.l2() * objectives.l2()
    with pytest.raises(TypeError):
        objectives.l2() + 1
    with pytest.raises(UserError, match=r"two terms are named 'l2'.*named"):
        objectives.l2() + objectives.l2()
    with pytest.raises(UserError, match="did you mean l2"):
        objectives.l2().without("l22")


def test_methods_are_expressions():
    config = Config(l2=0.0, spatial_tv=0.1, temporal_tv=0.0)
    assert set(objectives.leaps(config).weights) == {
        "cross_entropy",
        "priming",
        "priming_per_step",
        "coherence",
        "diversity",
        "spatial_tv",
    }
    assert set(objectives.deep_inversion(config).weights) == {
        "cross_entropy",
        "diversity",
        "spatial_tv",
    }
    off = Config(coherence=0, diversity=0, priming_per_step=0, spatial_tv=0)
    assert set(objectives.leaps(off).weights) == {"cross_entropy", "priming"}
    assert objectives.leaps(Config(priming_cells=3)).cells == {3}
    half = Config(regularization=0.5, coherence=0.4)
    assert objectives.leaps(half).weights["coherence"] == pytest.approx(0.2)


def test_distances_are_those_of_all_pairs():
    z = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    pairs = sorted(itertools.combinations(range(5), 2), key=lambda p: p[1] - p[0])
    expected = [np.abs(z[:, s] - z[:, t]).mean((1, 2)) for s, t in pairs]
    found = objectives.frame_distances(z)
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-6)


def test_one_frame_has_no_distances():
    assert objectives.frame_distances(jnp.ones((2, 1, 3))).shape == (2, 0)
