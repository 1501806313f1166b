"""Synthesis: it reaches the class, keeps videos apart, resumes, and stops at NaN."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from leaps_jax import (
    Config,
    Model,
    Parametrization,
    UserError,
    objectives,
    preset,
    synthesize,
    taps,
    transforms,
)
from leaps_jax.runtime.engine import NotFiniteError
from leaps_jax.synthesis import as_pixels, iterate, prepare
from leaps_jax.terms import term
from leaps_jax.video import normalize

ONE = jax.devices()[:1]
SHORT = Config(steps=12, steps_per_call=4, diversity=0.05)


NO_VIEWS = dict(view_scale=0.0, view_shift=0.0, view_noise=0.0, view_tint=0.0)


@pytest.mark.parametrize(
    ("parametrization", "diversity"), [("fourier", 1.0), ("pixels", 0.02)]
)
def test_leaps_turns_noise_into_the_class_and_towards_the_stimulus(
    parametrization, diversity, tiny, verifier, stimuli
):
    config = preset("leaps", parametrization, steps=80, steps_per_call=40, **NO_VIEWS)
    config = dataclasses.replace(
        config,
        learning_rate=0.3,
        diversity=diversity,
        spatial_tv=0.0,
        temporal_tv=0.0,
    )
    labels = ["walk", "bend", "run"]
    result = synthesize(tiny, stimuli[:3], labels, verifier, config, devices=ONE)
    assert result.videos.shape == (3, 4, 32, 32, 3)
    assert 0 <= result.videos.min() and result.videos.max() <= 1
    assert result.labels.tolist() == [4, 0, 3]
    seen = np.asarray(taps.predict(tiny, result.videos)).argmax(1)
    assert seen.tolist() == [4, 0, 3]
    assert list(result.metrics)[: len(result.weights)] == list(result.weights)
    for name in ("cross_entropy", "priming", "diversity", "total"):
        assert result.metrics[name].shape == (80, 3)
        assert (result.metrics[name][-1] < result.metrics[name][0]).all(), name


def test_videos_do_not_depend_on_their_neighbours(tiny, stimuli):
    together = synthesize(tiny, stimuli[:3], [0, 1, 2], config=SHORT, devices=ONE)
    alone = synthesize(tiny, stimuli[:1], [0], config=SHORT, devices=ONE)
    np.testing.assert_allclose(together.videos[:1], alone.videos, atol=1e-4)


def test_every_video_starts_from_and_moves_by_noise_of_its_own(tiny, stimuli):
    problem = prepare(tiny, stimuli[:1], [0], config=SHORT).repeated(2)
    state = problem.init_state()
    assert np.abs(state.parameters[0] - state.parameters[1]).max() > 0.01
    again = prepare(tiny, stimuli[:1], [0], config=SHORT).init_state()
    np.testing.assert_array_equal(state.parameters[:1], again.parameters)
    other = dataclasses.replace(SHORT, seed=1)
    other_state = prepare(tiny, stimuli[:1], [0], config=other).init_state()
    assert np.abs(other_state.parameters - again.parameters).max() > 0.01


def test_the_videos_are_those_after_the_last_step(tiny, stimuli):
    problem = prepare(tiny, stimuli[:2], [0, 1], config=SHORT)
    *_, last = iterate(problem, devices=ONE)
    result = synthesize(tiny, stimuli[:2], [0, 1], config=SHORT, devices=ONE)
    pixels = as_pixels(problem, last.state().parameters)
    np.testing.assert_array_equal(result.videos, pixels)


def test_what_no_loss_holds_fades_to_grey(tiny, stimuli):
    """A loss of one frame, from a clip: the other frames lose their contrast."""

    def first_frame(context):
        return jnp.square(context.video[:, 0] - 1).mean((1, 2, 3))

    objective = term("first_frame", first_frame)
    contrast = {}
    for weight_decay in (0.0, 0.3):
        config = Config(
            steps=100,
            init="stimulus",
            parametrization="pixels",
            weight_decay=weight_decay,
        )
        given = {"config": config, "objective": objective, "devices": ONE}
        videos = synthesize(tiny, stimuli[:1], [0], **given).videos
        contrast[weight_decay] = videos[0, 1:].std() / stimuli[0, 1:].std()
        frames = normalize(videos[0], tiny.spec)
        assert np.abs(frames[0].mean() - 1) < 0.1
    assert contrast[0.0] == pytest.approx(1, abs=1e-3)
    assert contrast[0.3] < 0.5


def test_going_on_from_a_saved_state_changes_nothing(tiny, verifier, stimuli):
    problem = prepare(tiny, stimuli[:2], [0, 1], verifier, SHORT)
    whole = [s.state() for s in iterate(problem, devices=ONE)]
    resumed = [s.state() for s in iterate(problem, whole[0], devices=ONE)]
    assert len(whole) == 3 and len(resumed) == 2
    jax.tree.map(np.testing.assert_array_equal, whole[-1], resumed[-1])


def test_a_loss_that_is_not_finite_names_term_step_and_video(tiny, stimuli):
    def explode(context):
        return jax.numpy.where(
            context.labels == 1,
            jax.numpy.log(-(context.video[:, 0, 0, 0, 0] ** 2)),
            0.0,
        )

    objective = objectives.cross_entropy() + objectives.term("explosive", explode)
    problem = prepare(tiny, stimuli[:2], [0, 1], config=SHORT, objective=objective)
    before = problem.init_state()
    with pytest.raises(NotFiniteError) as caught:
        list(iterate(problem, devices=ONE))
    message = str(caught.value)
    assert "explosive" in message and "step 0" in message and "[1]" in message
    assert "cross_entropy" not in message
    kept = caught.value.snapshot.state()
    np.testing.assert_array_equal(kept.parameters, before.parameters)
    assert kept.step.tolist() == [0, 0]


def test_without_a_verifier_the_diversity_term_is_off(tiny, stimuli):
    problem = prepare(tiny, stimuli[:1], [0], config=SHORT)
    assert "diversity" not in problem.objective.weights
    with pytest.raises(UserError, match="needs a verifier"):
        prepare(tiny, stimuli[:1], [0], config=SHORT, objective=objectives.diversity())


@pytest.mark.parametrize("method", objectives.METHODS)
def test_every_method_runs_on_the_engine(method, tiny, verifier, stimuli):
    octaves, init = (2, "stimulus") if method == "deep_dream" else (1, "noise")
    config = Config(steps=8, steps_per_call=4, octaves=octaves, init=init)
    objective = objectives.METHODS[method](config)
    result = synthesize(
        tiny, stimuli[:1], [0], verifier, config, objective, devices=ONE
    )
    assert np.isfinite(result.metrics["total"]).all()


MISTAKES = {
    "one number for all videos": (
        lambda context: context.video.mean(),
        r"term='mine': gives an array of shape \(\), not a loss for each of 2 videos",
    ),
    "no tap": (
        lambda context: context.taps["nrm1"].value.mean((1, 2, 3, 4)),
        r"taps\['nrm1'\]: no such tap; did you mean norm1",
    ),
    "no verifier": (
        lambda context: context.verifier_taps["norm1"].value.mean((1, 2, 3, 4)),
        r"verifier_taps\['norm1'\]: no such tap; the model has none",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_a_term_of_ones_own_are_told(tiny, case):
    loss, message = MISTAKES[case]
    config = dataclasses.replace(SHORT, init="noise")
    objective = objectives.term("mine", loss)
    with pytest.raises(UserError, match=message) as caught:
        synthesize(tiny, None, [0, 1], config=config, objective=objective, devices=ONE)
    assert "\n" not in str(caught.value)


def test_only_what_uses_taps_needs_them(tiny, stimuli):
    bare = dataclasses.replace(tiny, tap_filter=lambda module, method: False)
    objective = objectives.METHODS["activation_maximization"](SHORT)
    result = synthesize(bare, None, [0], None, SHORT, objective, devices=ONE)
    assert np.isfinite(result.videos).all()
    with pytest.raises(UserError, match="has no taps"):
        prepare(bare, stimuli[:1], [0])


class NNXBlock(nnx.Module):
    def __init__(self, channels, features, rngs):
        self.conv = nnx.Conv(channels, features, (3, 3, 3), (1, 2, 2), rngs=rngs)
        self.norm = nnx.LayerNorm(features, rngs=rngs)

    def __call__(self, x):
        return nnx.gelu(self.norm(self.conv(x)))


class OfNNX(nn.Module):
    """A network of NNX blocks, each bridged by itself."""

    @nn.compact
    def __call__(self, x, train=False):
        for number, (channels, features) in enumerate([(3, 8), (8, 16)]):
            x = nnx.bridge.to_linen(
                NNXBlock, channels, features, name=f"block{number}"
            )(x)
        return nn.Dense(5)(x.mean((1, 2, 3)))


def test_blocks_of_nnx_are_tapped_and_inverted(tiny, verifier, stimuli):
    module = OfNNX()
    variables = module.init(jax.random.key(0), stimuli[:1])
    model = Model(
        module,
        variables,
        tiny.spec,
        tap_filter=lambda m, method: "block" in str(m.name) and method == "__call__",
    )
    assert taps.tap_names(model) == ["block0/__call__", "block1/__call__"]
    result = synthesize(
        model, stimuli[:2], [0, 1], verifier, dataclasses.replace(SHORT, steps=8)
    )
    first, last = (result.metrics["total"][i].mean() for i in (0, -1))
    assert set(result.weights) >= {"priming", "coherence", "diversity"}
    assert last < first
    assert result.metrics["priming"][0].min() > 0


def test_flip_and_temporal_roll_change_the_draws(tiny, stimuli):
    plain = synthesize(tiny, stimuli[:1], [0], config=SHORT, devices=ONE)
    for change in ({"flip": True}, {"temporal_roll": 2}, {"view_delay": 0.5}):
        config = dataclasses.replace(SHORT, **change)
        moved = synthesize(tiny, stimuli[:1], [0], config=config, devices=ONE)
        assert np.abs(plain.videos - moved.videos).max() > 1e-3


def test_labels_and_stimuli_pair_up(tiny, stimuli):
    assert len(prepare(tiny, stimuli[:1], [0, 1, 2])) == 3
    assert len(prepare(tiny, stimuli[:3], ["run"])) == 3
    with pytest.raises(UserError, match="3 labels for 2 stimuli"):
        prepare(tiny, stimuli[:2], [0, 1, 2])


@pytest.mark.parametrize(
    ("labels", "change", "message"),
    [
        (["wlk"], None, "label='wlk': not a class of tiny; did you mean walk"),
        ([5], None, "label=5: tiny has classes 0 to 4"),
        ([], None, "give at least one label"),
        ("walk", None, r"labels='walk': is one label; write \['walk'\]"),
        ([0], lambda s: s[:, :3], "must be"),
        ([0], lambda s: s * np.nan, "not finite"),
        ([0], lambda s: s * 255, "scale to"),
    ],
)
def test_bad_input_is_refused_in_one_line(tiny, stimuli, labels, change, message):
    changed = change(stimuli[:1]) if change else stimuli[:1]
    with pytest.raises(UserError, match=message) as caught:
        prepare(tiny, changed, labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["steps=0"], "steps=0: must be at least 1"),
        (["learning_rate=nan"], "must be a finite number"),
        (["marign=1"], "did you mean margin"),
        (["flip=maybe"], "write true or false"),
        (["steps=1.5"], "not a whole number"),
        (["steps"], "write key=value"),
        (["beta1=1"], r"must be in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Config().updated(settings)


def test_settings_parse_by_the_type_of_their_field():
    config = Config().updated(["flip=False", "seed=3", "roll=0.25"])
    assert (config.flip, config.seed, config.roll) == (False, 3, 0.25)


def test_a_parametrization_and_transforms_of_ones_own(tiny, stimuli):
    """The same picture in every frame, made in a few lines, and seen mirrored."""

    def init(key, spec, start):
        picture = jax.random.normal(key, (spec.size, spec.size, 3))
        return {"picture": 0.01 * picture, "colour": jax.numpy.zeros(3)}

    def decode(parameters, spec):
        picture = jax.nn.sigmoid(parameters["picture"] + parameters["colour"])
        return jax.numpy.broadcast_to(picture, (spec.frames, *picture.shape))

    still = Parametrization("still", init, decode)
    seen = []

    def mirrored(key, video):
        seen.append(video.shape)
        return video[:, :, ::-1]

    def run(*args):
        return synthesize(
            tiny,
            stimuli[:1],
            ["run"],
            config=SHORT,
            parametrization=still,
            transforms=list(args),
            devices=ONE,
        )

    result, other = run(), run(mirrored, transforms.noise(0.01))
    assert seen == [(4, 32, 32, 3)] * len(seen) and seen
    assert result.metrics["total"][-1] < result.metrics["total"][0]
    assert np.ptp(result.videos, axis=1).max() == 0, "frames differ"
    assert np.abs(result.videos - other.videos).max() > 1e-3


def test_the_losses_of_several_views_are_averaged(tiny, stimuli):
    # few steps, since each magnifies rounding errors
    config = dataclasses.replace(SHORT, steps=4, **NO_VIEWS)
    one = synthesize(tiny, stimuli[:2], [0, 1], config=config, devices=ONE)
    three = synthesize(
        tiny,
        stimuli[:2],
        [0, 1],
        config=dataclasses.replace(config, views=3),
        devices=ONE,
    )
    # nothing is random, so all views are the same
    np.testing.assert_allclose(three.videos, one.videos, atol=1e-4)
    assert three.metrics["total"].shape == (4, 2)


def test_a_wrong_parametrization_is_refused_in_one_line():
    from leaps_jax import parametrizations

    with pytest.raises(UserError, match="'fourrier': unknown; did you mean fourier"):
        parametrizations.from_config(Config(parametrization="fourrier"))
    with pytest.raises(UserError, match="blur=1.0: smooths gradients of pixels"):
        parametrizations.from_config(Config(blur=1.0))
    with pytest.raises(UserError, match="view_shift=-1: must not be negative"):
        Config(view_shift=-1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"transforms": ["roll"]},
            "transforms='roll': is no function",
        ),
        (
            {"transforms": [lambda key, video: video[:2]]},
            r"transforms: make \(2, 32, 32, 3\); the model takes a video of \(4,",
        ),
        (
            {
                "parametrization": Parametrization(
                    "flat", lambda key, spec, start: 0.0, lambda p, spec: p
                )
            },
            r"parametrization='flat': decodes to \(\)",
        ),
    ],
)
def test_what_makes_no_video_is_refused_before_the_work(
    tiny, stimuli, changed, message
):
    with pytest.raises(UserError, match=message) as caught:
        prepare(tiny, stimuli[:1], [0], **changed)
    assert "\n" not in str(caught.value)
