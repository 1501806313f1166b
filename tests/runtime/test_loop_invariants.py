"""What a loop's constants alone decide is computed once, and the result is the same."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

from leaps_jax import Config, Model, objectives, synthesize, update
from leaps_jax.runtime.loop_invariants import hoist
from leaps_jax.runtime.parallel import AXIS
from leaps_jax.zoo import build as zoo


def equations(function, *arguments):
    return jax.make_jaxpr(function)(*arguments).jaxpr.eqns


def of_constants(function, *arguments):
    """The kinds of equations whose operands are constants."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return {
        eqn.primitive.name
        for eqn in jaxpr.eqns
        if all(isinstance(v, Literal) or v in jaxpr.constvars for v in eqn.invars)
    }


def layer(x, weights):
    """A call in a call, of weights that are cast, and statistics that are folded."""
    kernel, variance = weights

    @jax.jit
    def normalize(y):
        return y * jax.lax.rsqrt(variance + 1e-5)

    @jax.jit
    def project(y, kernel):
        return normalize(y @ kernel.astype(y.dtype).T)

    return project(project(x, kernel), kernel)


def test_weights_are_cast_and_folded_before_the_loop():
    x = jax.random.normal(jax.random.key(0), (8, 4), jnp.bfloat16)
    weights = jax.random.normal(jax.random.key(1), (4, 4)), jnp.arange(4.0)
    step = hoist(layer, x, [weights])
    kinds = [eqn.primitive.name for eqn in equations(step, x)]
    assert kinds.count("dot_general") == 2
    assert not {"transpose", "rsqrt", "add", "jit", "pjit"} & set(kinds)
    for value in (x, x + 1):
        found, plain = step(value), layer(value, weights)
        np.testing.assert_allclose(found.astype(float), plain.astype(float), rtol=2e-2)


def test_what_is_spread_over_positions_is_made_in_the_loop():
    x, bias = jnp.ones((64, 64, 64)), jnp.ones(64)
    step = hoist(
        lambda x, bias: x + jnp.broadcast_to(jnp.sin(bias), x.shape), x, [bias]
    )
    kinds = [eqn.primitive.name for eqn in equations(step, x)]
    assert kinds == ["broadcast_in_dim", "add"]


def test_forms_for_other_platforms_are_dropped():
    def step(x, w):
        forms = {"cpu": lambda x, w: x + jnp.sin(w), "default": lambda x, w: x + w}
        return jax.lax.platform_dependent(x, w, **forms)

    x = jnp.ones(3)
    hoisted = hoist(step, x, [x], jax.devices()[0])
    assert [eqn.primitive.name for eqn in equations(hoisted, x)] == ["add"]
    np.testing.assert_allclose(hoisted(x), x + np.sin(1.0), rtol=1e-6)


@pytest.mark.parametrize(
    "platform, version, kind",
    [
        ("cpu", "cpu", "add"),
        ("gpu", "PJRT C API\ncuda 13000", "mul"),
        ("gpu", "PJRT C API\nrocm 60000", "sub"),
        ("tpu", "PJRT C API\nTFRT TPU v5", "max"),
    ],
)
def test_forms_are_those_for_the_platform_of_the_device(platform, version, kind):
    """Which is not asked to compute anything."""
    device = SimpleNamespace(
        platform=platform, client=SimpleNamespace(platform_version=version)
    )
    forms = {"cpu": jnp.add, "cuda": jnp.multiply, "rocm": jnp.subtract}

    def step(x, w):
        return jax.lax.platform_dependent(x, w, **forms, default=jnp.maximum)

    hoisted = hoist(step, jnp.ones(3), [jnp.ones(3)], device)
    kinds = [eqn.primitive.name for eqn in equations(hoisted, jnp.ones(3))]
    assert kinds == [kind]


def test_a_collective_stays_one():
    """Also of a constant: that of each device is another."""

    def step(x, w):
        return x + jax.lax.psum(w * w, AXIS)

    def run(x, w):
        return hoist(step, x, [w])(x)

    result = jax.vmap(run, axis_name=AXIS)(jnp.zeros(2), jnp.array([2.0, 3.0]))
    np.testing.assert_array_equal(result, [13.0, 13.0])


@pytest.mark.parametrize("name", ["x3d_xs_small", "timesformer_small"])
def test_nothing_of_the_weights_is_computed_in_a_step(name, on_a_gpu):
    module, spec = zoo.build(name, ("a", "b"), dtype=jnp.bfloat16)
    model = Model(module, zoo.variable_shapes(module), spec)
    config = Config(steps=10)
    objective = objectives.leaps(config).without("diversity")
    setup = update.make_setup(model, None, objective, config)
    update_step = update.make_update_step(setup)
    shape = (1, spec.frames, spec.size, spec.size, 3)
    primed = jax.eval_shape(
        lambda variables: update.prime(model, variables, jnp.zeros(shape), objective),
        model.variables,
    )
    batch = update.Batch(
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1,), jnp.float32),
        primed,
    )
    frozen = update.Frozen(model.variables, None, {})
    left = set()

    def body(varying, batch, frozen):
        state, looks = varying
        return update_step(state, batch, frozen, looks)

    def run(state, batch, frozen):
        varying = state, jnp.array(False)
        step = hoist(body, varying, (batch, frozen))
        left.update(of_constants(step, varying))
        return state

    state = update.init_state(setup, np.arange(1))
    one_device = jax.vmap(run, axis_name=AXIS, in_axes=0, axis_size=1)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), (state, batch, frozen)
    )
    jax.eval_shape(one_device, *arguments)
    assert "broadcast_in_dim" in left  # biases, to all positions
    assert left <= {"broadcast_in_dim", "iota", "psum"}


def test_a_run_in_the_forms_of_a_gpu_is_the_same(tiny, verifier, stimuli, request):
    config = Config(steps=6, steps_per_call=3)
    arguments = tiny, stimuli[:2], [0, 1], verifier, config
    plain = synthesize(*arguments)
    request.getfixturevalue("on_a_gpu")
    found = synthesize(*arguments)
    assert np.abs(found.videos - plain.videos).max() < 1e-4
    for term, values in plain.metrics.items():
        np.testing.assert_allclose(found.metrics[term], values, rtol=1e-3, atol=1e-6)
