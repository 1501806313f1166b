"""Attention, in the form that each machine runs fast.

`attend` is its definition on CPUs and TPUs. On a GPU in half precision it is cuDNN's,
which never has the scores in memory, and a kernel of its own for the few time steps of
a video. tests/test_attention.py holds each form against the definition.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

LookedUp = tuple[jax.Array, jax.Array | np.ndarray]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None = None,
    looked_up: LookedUp | None = None,
    length: int | None = None,
) -> jax.Array:
    """Attention, with its softmax in float32.

    Args:
      q: (..., n, heads, d).
      k: (..., m, heads, d).
      v: likewise.
      bias: (heads, n, m), added to the scores.
      looked_up: what queries add to the score of a key by a property of the key, its
        place say: the values for each property (..., n, heads, e), and which of them
        a key has (..., m, e), zeros and ones.
      length: how many keys, the first, are real; all if None.

    Returns:
      (..., n, heads, d).
    """
    q = q * q.shape[-1] ** -0.5
    m = k.shape[-3]
    length = m if length is None else length
    plain = bias is None and looked_up is None and length == m
    if plain and q.shape[-3] * m <= _FEW:
        form = _attend_in_one_kernel if _tiles(q, k) else _attend_by_sums
        return jax.lax.platform_dependent(q, k, v, cuda=form, default=_products)
    if _cudnn_takes(q, looked_up):
        return _attend_by_cudnn(q, k, v, bias, looked_up, length)
    return _products(q, k, v, bias, looked_up, length)


def fill_tokens(x: jax.Array, dtype: Any) -> jax.Array:
    """Zeros after the tokens of (..., n, c), to a length that needs no copies later.

    cuDNN wants even lengths, and XLA fills the rows of every matrix product up to a
    multiple of 8. Here it costs nothing: it is a part of the norm before.
    """
    n = x.shape[-2]
    if n * n <= _FEW or not _cudnn_takes(jnp.zeros(0, dtype), None):
        return x
    return jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (0, -n % 8), (0, 0)])


def _products(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None = None,
    looked_up: LookedUp | None = None,
    length: int | None = None,
) -> jax.Array:
    """`attend` of scaled queries, by its definition."""
    scores = jnp.einsum(
        "...nhd,...mhd->...hnm", q, k, preferred_element_type=jnp.float32
    )
    if bias is not None:
        scores += bias
    if looked_up is not None:
        scores += look_up(*looked_up)
    if length is not None and length < k.shape[-3]:
        scores = jnp.where(np.arange(k.shape[-3]) < length, scores, -jnp.inf)
    weights = nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("...hnm,...mhd->...nhd", weights, v)


@jax.jit
def look_up(values: jax.Array, properties: jax.Array | np.ndarray) -> jax.Array:
    """A look-up (..., heads, n, m), written as a product with zeros and ones."""
    properties = properties.astype(values.dtype)
    return jnp.einsum("...nhe,...me->...hnm", values, properties)


_FEW = 64  # scores of one head: those of 8 time steps


def _attend_by_sums(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attend` without matrix products, which such small ones leave mostly idle."""
    q, k, v32 = (x.astype(jnp.float32) for x in (q, k, v))
    scores = (q[..., :, None, :, :] * k[..., None, :, :, :]).sum(-1)  # n m heads
    weights = nn.softmax(scores, axis=-2)[..., None]
    return (weights * v32[..., None, :, :, :]).sum(-3).astype(v.dtype)


def _tiles(q: jax.Array, k: jax.Array) -> bool:
    """Whether Triton can have all tokens of a head in one tile."""
    sizes = (q.shape[-3], k.shape[-3], q.shape[-1])
    return all(n & (n - 1) == 0 for n in sizes) and q.shape[-1] <= 128


@jax.custom_vjp
def _attend_in_one_kernel(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`_attend_by_sums` with everything between the inputs and outputs in registers."""
    return _per_head(_few_forward, q, k, v)[0]


_attend_in_one_kernel.defvjp(
    lambda q, k, v: (_attend_in_one_kernel(q, k, v), (q, k, v)),
    lambda saved, gradient: tuple(_per_head(_few_backward, *saved, gradient)),
)


def _few_forward(q, k, v):
    weights = _few_weights(q, k)
    return ((weights[:, :, None] * v[None]).sum(1),)


def _few_backward(q, k, v, gradient):
    weights = _few_weights(q, k)
    of_weights = (gradient[:, None] * v[None]).sum(2)
    of_scores = weights * (of_weights - (weights * of_weights).sum(1)[:, None])
    return (
        (of_scores[:, :, None] * k[None]).sum(1),
        (of_scores[:, :, None] * q[:, None]).sum(0),
        (weights[:, :, None] * gradient[:, None]).sum(0),
    )


def _few_weights(q, k):
    scores = (q[:, None] * k[None]).sum(2)  # n m
    weights = jnp.exp(scores - scores.max(1)[:, None])
    return weights / weights.sum(1)[:, None]


def _per_head(function: Any, *arrays: jax.Array) -> list[jax.Array]:
    """A function of tiles (n, d) in float32, for each head of (..., n, heads, d)."""
    leading = arrays[0].shape[:-3]
    flat = [x.reshape(-1, *x.shape[-3:]) for x in arrays]
    outputs = flat[:3] if len(flat) > 3 else flat[:1]

    def kernel(*refs):
        tiles = [ref[...].astype(jnp.float32) for ref in refs[: len(flat)]]
        for ref, tile in zip(refs[len(flat) :], function(*tiles), strict=True):
            ref[...] = tile.astype(ref.dtype)

    def per_head(x: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, x.shape[1], None, x.shape[3]), lambda i, h: (i, 0, h, 0)
        )

    results = pl.pallas_call(
        kernel,
        grid=(flat[0].shape[0], flat[0].shape[2]),
        in_specs=[per_head(x) for x in flat],
        out_specs=[per_head(x) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        compiler_params=triton.CompilerParams(num_warps=1),
        name="attention_among_few",
    )(*flat)
    return [y.reshape(*leading, *y.shape[1:]) for y in results]


_HALF = (jnp.bfloat16, jnp.float16)


def _cudnn_takes(q: jax.Array, looked_up: LookedUp | None) -> bool:
    # decided while tracing: the operation cannot be traced for a machine without it
    width = q.shape[-1] + (looked_up[1].shape[-1] if looked_up else 0)
    return jax.default_backend() == "gpu" and q.dtype in _HALF and width <= 128


def _attend_by_cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    looked_up: LookedUp | None,
    length: int,
) -> jax.Array:
    """`attend` of scaled queries, without the scores ever in memory.

    What is looked up becomes further channels of queries and keys. cuDNN wants channels
    of one count, a multiple of 8, and even lengths; what fills them is zero or masked.
    """
    n, m, width = q.shape[-3], k.shape[-3], v.shape[-1]
    leading = q.shape[:-3]
    if looked_up is not None:
        values, properties = looked_up
        values = jnp.broadcast_to(values, (*q.shape[:-1], values.shape[-1]))
        ones = jnp.asarray(properties, k.dtype)[..., None, :]
        ones = jnp.broadcast_to(ones, (*k.shape[:-1], ones.shape[-1]))
        q = jnp.concatenate([q, values.astype(q.dtype)], -1)
        k = jnp.concatenate([k, ones], -1)
    channels = -(-q.shape[-1] // 8) * 8

    def filled(x: jax.Array) -> jax.Array:
        x = x.reshape(math.prod(leading), *x.shape[-3:])
        margins = (0, x.shape[1] % 2), (0, 0), (0, channels - x.shape[-1])
        return jnp.pad(x, ((0, 0), *margins))

    q, k, v = filled(q), filled(k), filled(v)
    if bias is None:
        y = _cudnn(q, k, v, None, length)
    else:
        bias = jnp.pad(bias, ((0, 0), (0, n % 2), (0, m % 2))).astype(q.dtype)
        y = _with_bias(q, k, v, bias, length)
    return y[:, :n, :, :width].reshape(*leading, n, -1, width)


def _cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, length: int
) -> jax.Array:
    lengths = [jnp.full(len(q), n, jnp.int32) for n in (q.shape[1], length)]
    masked = length < k.shape[1]
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias,
        scale=1.0,
        query_seq_lengths=lengths[0] if masked else None,
        key_value_seq_lengths=lengths[1] if masked else None,
        implementation="cudnn",
    )


def _heads_as_batch(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, length: int
) -> jax.Array:
    q, k, v = (x.transpose(2, 1, 0, 3) for x in (q, k, v))  # heads n windows d
    return _cudnn(q, k, v, bias[:, None], length).transpose(2, 1, 0, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _with_bias(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, length: int
) -> jax.Array:
    """Attention with a bias whose gradient is computed apart.

    For cuDNN the heads are the batch and the windows are the heads: with one bias for
    all "heads" it leaves out the bias's gradient, which takes it longer than the
    others and is dead code where weights are constants.
    """
    return _heads_as_batch(q, k, v, bias, length)


def _with_bias_forward(q, k, v, bias, length):
    y, transpose = jax.vjp(lambda *x: _heads_as_batch(*x, bias, length), q, k, v)
    return y, (transpose, q, k, v, bias)


def _with_bias_backward(length, saved, gradient):
    transpose, q, k, v, bias = saved
    _, of_bias = jax.vjp(lambda b: _products(q, k, v, b, None, length), bias)
    return *transpose(gradient), *of_bias(gradient)


_with_bias.defvjp(_with_bias_forward, _with_bias_backward)
