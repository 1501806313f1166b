"""Every form of a convolution is the one that defines it."""

import functools
import re

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

from leaps_jax.kernels import convolutions, depthwise
from leaps_jax.models.layers import DepthwiseConv


def check_same(form, definition, shape, kernel_shape):
    """Equal values and gradients, for a video and a kernel."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape)
    kernel = jax.random.normal(keys[1], kernel_shape)
    shown = jax.eval_shape(definition, x, kernel)
    gradient = jax.random.normal(keys[2], shown.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def values(function):
        y, transpose = jax.vjp(function, x, kernel)
        return y, *transpose(gradient)

    for a, b in zip(values(form), values(definition), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "channels", "kernel", "stride", "padding"),
    [
        ((5, 9, 8), 3, (3, 7, 7), (2, 2, 2), (1, 3, 3)),
        ((5, 13, 13), 3, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
        ((4, 16, 12), 3, (2, 4, 4), (2, 4, 4), (0, 0, 0)),
        ((6, 16, 12), 3, (3, 7, 7), (2, 4, 4), (1, 3, 3)),
        ((4, 6, 6), 20, (2, 2, 2), (2, 2, 2), (0, 0, 0)),
        ((5, 7, 6), 20, (3, 1, 1), (2, 1, 1), (1, 0, 0)),
        ((5, 7, 6), 20, (3, 1, 1), (1, 2, 2), (1, 0, 0)),
        ((5, 7, 6), 20, (1, 1, 1), (2, 2, 2), (0, 0, 0)),
        ((5, 7, 6), 20, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
        ((5, 7, 6), 20, (3, 3, 3), (2, 2, 2), (1, 1, 1)),
        ((5, 7, 6), 20, (3, 3, 3), (1, 1, 1), (1, 1, 1)),
        ((5, 7, 6), 20, (1, 3, 2), (1, 1, 1), (0, 0, 0)),
    ],
)
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("_with_products", {}),
        ("_in_two_dimensions", {}),
        (
            "_in_two_dimensions",
            {"multiple": 8, "form": convolutions._in_order_of_cudnn},
        ),
    ],
)
def test_convolution(form, options, size, channels, kernel, stride, padding):
    check_same(
        lambda x, k: getattr(convolutions, form)(x, k, stride, padding, **options),
        lambda x, k: convolutions.native(x, k, stride, padding),
        (2, *size, channels),
        (*kernel, channels, 5),
    )


DEPTHWISE = [
    ((5, 7, 6), 5, (3, 3, 3), (1, 1, 1)),
    ((5, 7, 6), 6, (3, 3, 3), (1, 2, 2)),
    ((9, 6, 7), 8, (3, 3, 3), (2, 2, 2)),
    ((6, 4, 5), 4, (5, 1, 1), (1, 1, 1)),
    ((4, 9, 9), 3, (3, 3, 3), (1, 4, 4)),  # all frames in one cell
    ((1, 4, 4), 16, (3, 3, 3), (1, 8, 8)),
]


@pytest.mark.parametrize("form", ["shifted_products", "fused"])
@pytest.mark.parametrize(("size", "channels", "kernel", "stride"), DEPTHWISE)
def test_depthwise_convolution(on_a_gpu, form, size, channels, kernel, stride):
    check_same(
        lambda x, k: getattr(depthwise, form)(x, k, stride),
        lambda x, k: depthwise.native(x, k, stride),
        (2, *size, channels),
        (*kernel, 1, channels),
    )


def test_kernel_of_a_gpu_compiles_for_one():
    x = jax.ShapeDtypeStruct((2, 4, 9, 9, 54), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 1, 54), jnp.bfloat16)

    def loss(x, kernel):
        y = depthwise.convolve(x, kernel, (1, 2, 2))
        return y.astype(jnp.float32).sum()

    text = checks.lowered_for_a_gpu(jax.grad(loss), x, kernel)
    assert "triton" in text
    assert "feature_group_count = 54" not in text  # no gradient of a frozen kernel


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2)])
def test_no_choice_of_a_depthwise_kernel_is_between_numbers(stride):
    """The Triton backend of Pallas makes one of bits of it; interpreted it is right."""
    x = jnp.zeros((1, 4, 6, 6, 8))  # all frames in one cell: which it reads is known
    kernel = jnp.ones((3, 3, 3, 1, 8))

    def gradient(x):
        return jax.grad(lambda x: depthwise.fused(x, kernel, stride).sum())(x)

    found = list(equations(jax.make_jaxpr(gradient)(x).jaxpr))
    assert "masked_load" in {eqn.primitive.name for eqn in found}
    for eqn in found:
        if "_where" in str(eqn.params.get("name")) or eqn.primitive.name == "select_n":
            assert not all(isinstance(v, Literal) for v in eqn.invars), eqn


def equations(jaxpr):
    """Those of a jaxpr and of all within it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_heads_share_a_depthwise_kernel(stride):
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 6, 6)).astype(np.float32)
    whole = DepthwiseConv((3, 3, 3), stride)
    heads = DepthwiseConv((3, 3, 3), stride, heads=2)
    variables = heads.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (3, 3, 3, 1, 3)
    tiled = {"params": {"kernel": jnp.concatenate([kernel, kernel], -1)}}
    np.testing.assert_allclose(
        heads.apply(variables, x), whole.apply(tiled, x), rtol=1e-5, atol=1e-5
    )


def test_sums_of_a_depthwise_convolution_are_in_float32():
    x = np.random.default_rng(0).normal(size=(1, 4, 6, 6, 8)).astype(np.float32)
    exact, half = (DepthwiseConv((3, 3, 3), dtype=d) for d in (None, jnp.bfloat16))
    variables = exact.init(jax.random.key(0), x)
    want, have = exact.apply(variables, x), half.apply(variables, x)
    assert have.dtype == jnp.bfloat16
    np.testing.assert_allclose(have.astype(np.float32), want, rtol=0.05, atol=0.05)


def test_kernels_of_a_gpu_have_outputs_first_and_so_have_those_of_gradients():
    """Else XLA puts them into that order in every step of a loop."""

    def loss(x, kernel):
        y = convolutions._in_order_of_cudnn(x, kernel, (1, 1), (1, 1))
        return jnp.square(y).sum()

    x, kernel = jnp.zeros((2, 6, 6, 8)), jnp.zeros((3, 3, 8, 16))
    traced = str(jax.make_jaxpr(jax.grad(loss))(x, kernel))
    pattern = r"(?s)(\w+):\S+ = conv_general_dilated.*?rhs_spec=\((.*?)\)"
    found = re.findall(pattern, traced)
    # outputs, inputs, height and width; nothing is made of what has no name
    assert [order for name, order in found if name != "_"] == ["0, 3, 1, 2"] * 2
