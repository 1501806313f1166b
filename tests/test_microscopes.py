"""Objectives that look at a part of a model: what they are, and that they reach it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax import Config, UserError, microscopes, objectives, synthesis, taps
from leaps_jax.synthesis import prepare, synthesize
from leaps_jax.taps import Tap
from leaps_jax.terms import Context

RNG = np.random.default_rng(5)
FEATURE = RNG.normal(size=(2, 5, 3, 4, 7)).astype(np.float32)
TOKENS = RNG.normal(size=(2, 11, 6)).astype(np.float32)
CONTEXT = Context(
    video=jnp.zeros((2, 4, 6, 6, 3)),
    logits=jnp.zeros((2, 5)),
    labels=jnp.full(2, -1),
    taps={"a/norm": Tap("a/norm", jnp.array(FEATURE), 1), "b": Tap("b", TOKENS)},
)
VECTOR = RNG.normal(size=7)
UNIT = VECTOR / np.linalg.norm(VECTOR)
ALONG = FEATURE @ UNIT
COSINE = ALONG / np.linalg.norm(FEATURE, axis=-1)


@pytest.mark.parametrize(
    ("objective", "activation"),
    [
        (objectives.channel("a/norm", 2), FEATURE[..., 2].mean((1, 2, 3))),
        (objectives.channel(0, 2), FEATURE[..., 2].mean((1, 2, 3))),
        (objectives.channel(-1, 5), TOKENS[..., 5].mean(1)),
        (objectives.neuron("a/norm", 2, (4, 0, 1)), FEATURE[:, 4, 0, 1, 2]),
        (objectives.neuron("a/norm", 2), FEATURE[:, 2, 1, 2, 2]),  # the middle
        (objectives.neuron("b", 0, [10]), TOKENS[:, 10, 0]),
        (objectives.layer("b"), (TOKENS**2).mean((1, 2))),
        (objectives.direction(0, 3 * VECTOR), ALONG.mean((1, 2, 3))),
        (
            objectives.direction(0, VECTOR, cosine=2),
            (ALONG * np.maximum(0.1, COSINE) ** 2).mean((1, 2, 3)),
        ),
    ],
    ids=lambda each: each.title if hasattr(each, "title") else "",
)
def test_each_is_the_negated_activation(objective, activation):
    (loss,) = objective.values(CONTEXT).values()
    np.testing.assert_allclose(loss, -activation, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.channel("a/nrm", 2), "a/nrm:2: no such tap; did you mean"),
        (lambda: objectives.layer(2), "layer:2: taps are 0 to 1"),
        (lambda: objectives.channel("b", 6), "channel:b:6: b has channels 0 to 5"),
        (lambda: objectives.channel("b", -1), "b has channels 0 to 5"),
        (lambda: objectives.neuron("b", 0, (1, 1)), "positions up to 10; give 1 num"),
        (lambda: objectives.neuron(0, 0, (5, 0, 0)), "up to 4,2,3; give 3 numbers"),
        (lambda: objectives.direction("b", VECTOR), "of 7 numbers, and b has 6 chann"),
        (lambda: objectives.direction("b", [[1.0]]), r"shape \(1, 1\): must be \(c,\)"),
        (lambda: objectives.direction("b", [0.0, 0.0]), "finite and not all 0"),
        (lambda: objectives.direction("b", [np.nan]), "finite and not all 0"),
    ],
)
def test_what_a_model_lacks_is_told_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make().values(CONTEXT)
    assert "\n" not in str(caught.value)


def test_a_mistyped_tap_is_told_before_anything_is_prepared(tiny, monkeypatch):
    monkeypatch.delattr(synthesis, "_checked")
    monkeypatch.delattr(synthesis, "iterate")
    for objective, message in (
        (objectives.channel("norm9", 1), "channel:norm9:1: no such tap; did you mean"),
        (objectives.layer("blok3"), "layer:blok3: no such tap; "),
        (objectives.neuron(-9, 1), "neuron:-9:1: taps are 0 to 2"),
        (2 * objectives.layer(0) + objectives.channel(0, 8), "has channels 0 to 7"),
        (objectives.term("own", _own), r"taps\['norm9'\]: no such tap; did you mean"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            synthesize(tiny, np.zeros((1, 4, 32, 32, 3)), objective=objective)
        assert "\n" not in str(caught.value)


def _own(context: Context) -> jax.Array:
    return context.taps["norm9"].mean().mean(1)


def test_a_term_for_a_number_of_videos_is_not_refused(tiny):
    weights = jnp.array([[1.0], [2.0]])

    def loss(context: Context) -> jax.Array:
        return jnp.concatenate([context.taps["norm2"].mean(), weights], 1)[:, 0]

    objective = objectives.term("mine", loss, uses=["tap"])
    assert len(prepare(tiny, None, [0, 1], objective=objective)) == 2


def test_a_text_is_the_name_of_what_it_makes():
    for text in ("channel:a/norm:2", "neuron:3:1:0,1,2", "neuron:b:0", "layer:-1"):
        assert microscopes.parse(text).title == text


@pytest.mark.parametrize(
    "text",
    ["", "layer", "layer:", "channel:a", "channel:a:x", "channel:a:1:2", "layer:a:1"]
    + ["neuron:a:1:2:3", "neuron:a:1,2:3", "unit:a:1", "channel:a:-1"],
)
def test_other_texts_are_refused(text):
    with pytest.raises(UserError, match="write one of channel:TAP:INDEX"):
        microscopes.parse(text)


def test_a_text_gets_the_name_of_its_tap(tiny):
    names = taps.tap_names(tiny)
    assert microscopes.named("layer:-1", tiny) == f"layer:{names[-1]}"
    assert microscopes.named(f"channel:{names[0]}:3", tiny).split(":")[1] == names[0]
    with pytest.raises(UserError, match="channels 0 to 7"):
        microscopes.named("channel:0:8", tiny)


def test_they_compose(tiny):
    """A sum with weights, a class, and coherence, from noise and without a stimulus."""
    objective = (
        2 * objectives.channel(-1, 3)
        + objectives.neuron(0, 1)
        - 0.1 * objectives.layer(1)
        + objectives.cross_entropy()
        + 0.1 * objectives.coherence()
    )
    config = Config(steps=4, steps_per_call=2)
    result = synthesize(tiny, None, ["run"], config=config, objective=objective)
    assert list(result.weights.values()) == [2, 1, -0.1, 1, 0.1]
    assert result.names == ("run",)
    assert objective.title == "channel:-1:3 + neuron:0:1 + layer:1"


def activations(model, videos) -> np.ndarray:
    _, tapped = taps.features(model, videos)
    return np.asarray(list(tapped.values())[-1]).mean((1, 2, 3))


def test_what_is_asked_for_rises_most(tiny):
    config = Config(steps=30, steps_per_call=30, spatial_tv=0.0)
    objective = objectives.channel(-1, 3)
    result = synthesize(tiny, None, config=config, objective=objective)
    assert result.labels.tolist() == [-1] and result.names == ("channel:-1:3",)
    noise = 0.5 + 0.01 * RNG.normal(size=result.videos.shape)
    rise = (activations(tiny, result.videos) - activations(tiny, noise))[0]
    assert rise.argmax() == 3
    assert rise[3] > 2 * np.delete(rise, 3).mean()


def test_contrast_of_two_models():
    ours, theirs = (RNG.normal(size=(2, 5)).astype(np.float32) for _ in range(2))
    labels = np.array([1, 3])
    context = dataclasses.replace(
        CONTEXT, logits=ours, labels=labels, verifier_logits=theirs
    )
    (loss,) = objectives.contrast().values(context).values()
    p, q = (np.asarray(jax.nn.softmax(x))[[0, 1], labels] for x in (ours, theirs))
    np.testing.assert_allclose(loss, -np.log(p) - np.log(1 - q), rtol=1e-5)


def test_contrast_is_for_one_model_and_against_the_other(tiny, verifier):
    config = Config(steps=60, steps_per_call=60, spatial_tv=0.0, learning_rate=0.2)
    objective, labels = objectives.contrast(), [0, 2, 4]
    # a verifier of which no statistics are known will do
    bare = dataclasses.replace(verifier, tap_filter=lambda module, method: False)
    result = synthesize(tiny, None, labels, bare, config, objective)
    ours, theirs = (
        np.asarray(jax.nn.softmax(taps.predict(m, result.videos)))[[0, 1, 2], labels]
        for m in (tiny, verifier)
    )
    assert (ours > 0.5).all() and (theirs < 0.2).all()
    with pytest.raises(UserError, match="needs a verifier"):
        synthesize(tiny, None, labels, None, config, objective)
    spec = dataclasses.replace(verifier.spec, classes=("a", "b", "c", "d", "e"))
    other = dataclasses.replace(verifier, spec=spec)
    with pytest.raises(UserError, match="classes are not those of tiny"):
        synthesize(tiny, None, labels, other, config, objective)


def test_a_class_is_asked_for_where_a_term_needs_one(tiny):
    objective = objectives.channel(-1, 3) + objectives.class_logit()
    with pytest.raises(UserError, match="labels=None: the objective has a term"):
        synthesize(tiny, None, objective=objective)
