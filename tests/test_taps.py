"""Taps are exact norm inputs, in order of execution, under jit, grad and remat."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax import Model, ModelSpec, UserError, estimate_moments, features, taps
from leaps_jax.model import norm_inputs
from leaps_jax.models import layers
from leaps_jax.zoo import build as zoo


def test_taps_are_the_inputs_of_the_norms_in_order(tiny, stimuli):
    logits, found = features(tiny, stimuli)
    assert list(found) == ["norm0", "norm1", "norm2"]
    assert [v.shape[1:] for v in found.values()] == [
        (4, 16, 16, 8),
        (4, 8, 8, 16),
        (4, 4, 4, 16),
    ]
    # the first one by hand
    kernel = tiny.variables["params"]["conv0"]["kernel"]
    x = (stimuli - 0.45) / 0.2
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 2, 2),
        [(1, 1)] * 3,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    np.testing.assert_allclose(found["norm0"], expected, atol=1e-4)
    np.testing.assert_allclose(logits, taps.predict(tiny, stimuli), atol=1e-4)


def test_pixels_are_not_clipped(tiny, stimuli):
    _, inside = features(tiny, stimuli)
    _, outside = features(tiny, stimuli + 3)
    assert np.abs(inside["norm0"] - outside["norm0"]).max() > 1


class Twelve(nn.Module):
    """Norms whose names sort otherwise than they run, and one that runs twice."""

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block)
        for i in range(12):
            x = block(name=f"block{i}")(x)
        return x.mean((1, 2, 3))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = layers.LayerNorm(name="norm")
        return norm(2 * norm(x) + 1)


def make_twelve() -> Model:
    module = Twelve()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 2, 4, 4, 3)))
    return Model(module, variables, ModelSpec("twelve", 2, 4, ("a", "b", "c")))


def test_order_is_of_execution_and_a_second_run_is_a_second_tap():
    names = taps.tap_names(make_twelve())
    assert names == [f"block{i}/norm#{call}" for i in range(12) for call in (1, 2)]


def test_taps_pass_through_remat_jit_and_grad():
    model = make_twelve()
    video = np.random.default_rng(0).random((1, 2, 4, 4, 3), np.float32)

    def loss(video):
        _, found = taps.apply(model.module, model.variables, video, model.tap_filter)
        return (
            found["block11/norm#2"].mean().sum() + found["block0/norm#1"].mean().sum()
        )

    gradient = jax.jit(jax.grad(loss))(video)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_any_flax_filter_taps_a_module_of_ones_own(stimuli):
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(6, (3, 3, 3), name="first")(x))
            return nn.Dense(2, name="last")(x.mean((1, 2, 3)))

    module = Own()
    model = Model(
        module,
        module.init(jax.random.key(0), jnp.zeros((1, 4, 32, 32, 3))),
        ModelSpec("own", 4, 32, ("a", "b")),
        tap_filter=lambda m, method: isinstance(m, nn.Conv) and method == "__call__",
    )
    _, found = features(model, stimuli)
    assert list(found) == ["first/__call__"]


class Statistics(nn.Module):
    """A user's layer, with methods of the names that norm layers use."""

    def observe(self, x):
        return x + 1

    def moments(self, x):
        return x.mean((1, 2, 3))

    def beside(self, x):
        return 2 * x

    def __call__(self, x):
        return self.beside(self.observe(x)) + self.moments(x)[:, None, None, None]


class WithStatistics(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Statistics(name="statistics")(x).mean((1, 2, 3))


@pytest.mark.parametrize(
    ("named", "names"),
    [
        (["moments"], ["statistics/moments"]),
        (["beside", "moments"], ["statistics/beside", "statistics/moments"]),
        (["observe", "moments"], ["statistics", "statistics/moments"]),
    ],
)
def test_methods_of_a_users_module_are_tapped_whatever_their_names(named, names):
    module, video = WithStatistics(), jnp.ones((1, 2, 4, 4, 3))

    def apply(tap_filter):
        return taps.apply(module, {}, video, tap_filter)[1]

    found = apply(lambda m, method: isinstance(m, Statistics) and method in named)
    assert list(found) == names
    assert all(tap.known == () for tap in found.values())
    np.testing.assert_array_equal(found["statistics/moments"].value, jnp.ones((1, 3)))
    assert apply(norm_inputs) == {}


@pytest.mark.parametrize("form", ["cpu", "gpu"])
def test_a_filter_may_name_a_whole_norm_layer(form, request):
    """Its helpers that return several arrays are no taps."""
    if form == "gpu":
        request.getfixturevalue("on_a_gpu")
    model = make_twelve()
    video = jnp.ones((1, 2, 4, 4, 3))

    def tap_filter(m, method):
        return m.name == "norm"

    _, found = taps.apply(model.module, model.variables, video, tap_filter)
    each = ("", "/output", "/__call__")
    assert list(found)[:6] == [f"block0/norm{m}#{n}" for n in (1, 2) for m in each]
    assert found["block0/norm#1"].known
    assert not found["block0/norm/output#1"].known


def test_a_tap_that_is_no_array_is_named(stimuli):
    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x, x

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(Pair(name="pair")(x)[0].mean((1, 2, 3)))

    module = Own()
    model = Model(
        module,
        module.init(jax.random.key(0), jnp.zeros((1, 4, 32, 32, 3))),
        ModelSpec("own", 4, 32, ("a", "b")),
        tap_filter=lambda m, method: isinstance(m, Pair),
    )
    with pytest.raises(UserError, match=r"tap_filter: pair/__call__ gives a tuple"):
        features(model, stimuli)


def test_moments_of_batch_norm_are_its_running_statistics(tiny):
    mean, var = taps.target_moments(tiny)["norm1"]
    np.testing.assert_array_equal(mean, tiny.variables["batch_stats"]["norm1"]["mean"])
    np.testing.assert_array_equal(var, tiny.variables["batch_stats"]["norm1"]["var"])


def test_moments_of_layer_norm_are_estimated_from_clips():
    model = make_twelve()
    with pytest.raises(UserError, match="estimate_moments"):
        taps.target_moments(model)
    clips = np.random.default_rng(1).random((5, 2, 4, 4, 3), np.float32)
    model = dataclasses.replace(model, moments=estimate_moments(model, clips, batch=2))
    mean, var = taps.target_moments(model)["block0/norm#1"]
    np.testing.assert_allclose(mean, clips.mean((0, 1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(var, clips.var((0, 1, 2, 3)), rtol=1e-3)


def test_wrong_shape_is_named(tiny):
    with pytest.raises(UserError, match=r"shape \(4, 32, 32, 3\)"):
        features(tiny, np.zeros((4, 32, 32, 3)))


@pytest.mark.parametrize("temporal_depth", [0, 2])
def test_tokens_of_vivit_are_found_by_time(temporal_depth):
    # without the stem, which looks at the frames beside a tubelet
    fields = {"depth": 2, "temporal_depth": temporal_depth, "stem": ()}
    module, _ = zoo.build("vivit_small", ("a",), frames=8, size=32, **fields)
    rng = np.random.default_rng(0)
    video = rng.normal(size=(2, 8, 32, 32, 3)).astype(np.float32)
    other = video.copy()
    other[:, 4:6] += 1  # the third tubelet
    variables = jax.jit(module.init)(jax.random.key(0), video)

    @jax.jit
    def run(video):
        _, found = taps.apply(module, variables, video, norm_inputs)
        return {name: tap.by_time() for name, tap in found.items()}

    one, two = run(video), run(other)
    for name, z in one.items():
        tokens = {"encoder": (4,), "spatial": (5,), "temporal": (1,)}
        assert z.shape == (2, 4, *tokens[name.partition("/")[0]], 192), name
    for name in ("encoder/block0/norm", "spatial/norm", "temporal/block0/norm"):
        if name in one:  # nothing has passed between steps yet
            changed = np.abs(one[name] - two[name]).max((0, 2, 3)) > 1e-3
            assert changed.tolist() == [False, False, True, False], name
