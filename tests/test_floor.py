"""The floor of a step: bytes of functions whose traffic is known by hand."""

import jax
import jax.numpy as jnp
import pytest

from leaps_jax import floor
from leaps_jax.runtime import traces

F32 = 4  # bytes


def like(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def moved(function, varying, *constants, **options):
    return floor.bytes_moved(
        traces.operations(function, varying, *constants, **options)
    )


def test_a_product_reads_both_factors_and_writes_one_result():
    x, w = like(2, 3), like(3, 4)
    assert moved(jnp.matmul, x, w) == F32 * (2 * 3 + 3 * 4 + 2 * 4)


def test_what_is_between_products_is_free():
    def network(x, w):
        return jax.nn.relu(2 * x @ w + 1) @ w

    x, w = like(2, 3), like(3, 3)
    assert moved(network, x, w) == 2 * F32 * (2 * 3 + 3 * 3 + 2 * 3)


def test_a_gradient_moves_what_its_own_products_do():
    """Forward x @ v and y @ w; backward, of the clip alone, g @ w.T and h @ v.T."""

    def loss(x, v, w):
        return jnp.square(jax.nn.relu(x @ v) @ w).sum()

    x, v, w = like(2, 3), like(3, 5), like(5, 7)
    first, second = 2 * 3 + 3 * 5 + 2 * 5, 2 * 5 + 5 * 7 + 2 * 7
    total = 2 * 7 + 1  # the sum reads what the last product made
    both = F32 * 2 * (first + second)
    assert moved(jax.grad(loss), x, v, w) == both  # which needs no loss
    assert moved(jax.value_and_grad(loss), x, v, w) == both + F32 * total


def test_a_convolution_of_video():
    def network(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 2, 2), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )

    x, w = like(2, 4, 8, 8, 3), like(1, 3, 3, 3, 16)
    assert moved(network, x, w) == F32 * (x.size + w.size + 2 * 4 * 4 * 4 * 16)


def test_reductions_of_one_tensor_read_it_once():
    def moments(x):
        mean = x.mean(0)
        return mean, jnp.square(x - mean).mean(0), x.max()

    again = 5  # the mean, for the variance
    assert moved(moments, like(100, 5)) == F32 * (100 * 5 + 5 + again + 5 + 1)


def test_constants_are_computed_once():
    def network(x, w):
        return x @ (w @ w)

    assert moved(network, like(2, 3), like(3, 3)) == F32 * (2 * 3 + 3 * 3 + 2 * 3)


def test_what_nothing_needs_is_not_computed():
    """As the gradients of frozen weights, which a hand-written rule computes."""

    @jax.custom_vjp
    def layer(x, w):
        return x @ w

    layer.defvjp(
        lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g)
    )
    x, w = like(2, 3), like(3, 3)
    by_hand = moved(jax.grad(lambda x, w: (layer(x, w) ** 2).sum()), x, w)
    assert by_hand == moved(jax.grad(lambda x, w: ((x @ w) ** 2).sum()), x, w)


def test_a_loop_counts_each_turn():
    def network(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, 7)[0]

    assert moved(network, like(2, 3), like(3, 3)) == 7 * F32 * (2 * 3 + 3 * 3 + 2 * 3)


@pytest.mark.parametrize(("platform", "products"), [("cuda", 2), ("tpu", 1), (None, 1)])
def test_it_is_of_the_form_in_use(platform, products):
    def network(x, w):
        def twice(x, w):
            return x @ w @ w

        return jax.lax.platform_dependent(x, w, cuda=twice, default=jnp.matmul)

    one = F32 * (2 * 3 + 3 * 3 + 2 * 3)
    found = moved(network, like(2, 3), like(3, 3), platform=platform)
    assert found == products * one


def test_the_slower_of_arithmetic_and_memory_decides():
    assert floor.milliseconds(1e9, 1e9, matmul=1e12, copy=1e12) == 1
    assert floor.milliseconds(9e9, 1e9, matmul=1e12, copy=1e12) == 9
    assert floor.milliseconds(1e9, 9e9, matmul=1e12, copy=1e12) == 9
