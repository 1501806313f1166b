"""Attention, in the form that each machine runs fast.

`products` is the definition, and what CPUs and TPUs run. On a GPU in half precision
attention is cuDNN's, which never has the scores in memory, or a Triton kernel for the
few time steps of a video. tests/kernels/test_attention.py holds each form against the
definition.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from leaps_jax.kernels import dispatch
from leaps_jax.kernels.dispatch import triton

#: A bias of scores as a product: values for each query (..., n, heads, e), and zeros
#: and ones that tell which of them a key gets (..., m, e), such as one-hot places.
FactoredBias = tuple[jax.Array, jax.Array | np.ndarray]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    factored_bias: FactoredBias | None = None,
    length: int | None = None,
) -> jax.Array:
    """Attention, with its softmax in float32.

    Args:
      q: (..., n, heads, d).
      k: (..., m, heads, d).
      v: likewise.
      factored_bias: added to the scores, such as decomposed relative positions.
      length: how many keys, the first, are real; all if None.

    Returns:
      (..., n, heads, d).
    """
    length = k.shape[-3] if length is None else length
    if cudnn_takes(q, factored_bias):
        return _attend_by_cudnn(q, k, v, factored_bias, length)
    return products(q, k, v, None, factored_bias, length)


def attend_over_time(qkv: jax.Array) -> jax.Array:
    """`attend` among the tokens of one place, those of all times.

    Args:
      qkv: (..., t, n, 3, heads, d): queries, keys and values of one matrix product; the
        kernel reads them in place.

    Returns:
      (..., t, n, heads, d).
    """

    def by_place(qkv: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(qkv.swapaxes(-5, -4), -3, 0)
        return attend(q, k, v).swapaxes(-4, -3)

    t, d = qkv.shape[-5], qkv.shape[-1]
    if t > _FEW or d < 16 or d != pl.next_power_of_2(d):
        return by_place(qkv)
    return dispatch.by_platform(by_place, gpu=_attend_over_time_in_one_kernel)(qkv)


def products(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None = None,
    factored_bias: FactoredBias | None = None,
    length: int | None = None,
) -> jax.Array:
    """`attend` by its definition, and with a bias (heads, n, m) of scores."""
    q = q * q.shape[-1] ** -0.5
    scores = jnp.einsum(
        "...nhd,...mhd->...hnm", q, k, preferred_element_type=jnp.float32
    )
    if bias is not None:
        scores += bias
    if factored_bias is not None:
        scores += expand_bias(*factored_bias)
    if length is not None and length < k.shape[-3]:
        scores = jnp.where(np.arange(k.shape[-3]) < length, scores, -jnp.inf)
    weights = nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("...hnm,...mhd->...nhd", weights, v)


@jax.jit
def expand_bias(values: jax.Array, one_hot: jax.Array | np.ndarray) -> jax.Array:
    """The bias (..., heads, n, m) of a `FactoredBias`."""
    one_hot = one_hot.astype(values.dtype)
    return jnp.einsum("...nhe,...me->...hnm", values, one_hot)


_FEW = 16  # times of one place
# Of one program: those of 4 places at 8 times. With 128 its gradient in full float32
# takes Triton minutes to compile.
_TOKENS = 32
_WARPS = 1


@jax.custom_vjp
def _attend_over_time_in_one_kernel(qkv: jax.Array) -> jax.Array:
    """Several places in one matrix product; scores between places are masked."""
    return _by_tokens(_over_time, 1, qkv)[..., 0, :, :]


def _over_time(together, q, k, v):
    weights = _weights_over_time(together, q, k)
    return (_product(weights.astype(v.dtype), v, (1, 0)),)


def _over_time_gradient(together, q, k, v, gradient):
    weights = _weights_over_time(together, q, k)
    dweights = _product(gradient, v, (1, 1))
    mean = (weights * dweights).sum(1, keepdims=True)
    dscores = weights * (dweights - mean) * q.shape[1] ** -0.5
    dscores, weights = dscores.astype(q.dtype), weights.astype(q.dtype)
    return (
        _product(dscores, k, (1, 0)),
        _product(dscores, q, (0, 0)),
        _product(weights, gradient, (0, 0)),
    )


def _product(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    axes = ((over[:1], over[1:]), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _weights_over_time(together, q, k):
    scores = _product(q, k, (1, 1)) * q.shape[1] ** -0.5
    scores = jnp.where(together, scores, -1e30)  # exponentials of it are 0
    weights = jnp.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


_attend_over_time_in_one_kernel.defvjp(
    lambda qkv: (_attend_over_time_in_one_kernel(qkv), qkv),
    lambda qkv, gradient: (
        _by_tokens(_over_time_gradient, 3, qkv, gradient[..., None, :, :]),
    ),
)


def _by_tokens(
    function: Callable[..., tuple[jax.Array, ...]], parts: int, *arrays: jax.Array
) -> jax.Array:
    """Runs a function of tiles (tokens, d) over arrays (..., t, n, parts, heads, d).

    A tile has the tokens of some places at all times, each of one head. The function
    gets a mask (tokens, tokens) of pairs of one place and one head, then a tile of each
    part of each array. It returns a tile for each part of the result.
    """
    *leading, t, n, _, heads, d = arrays[0].shape
    per_place = pl.next_power_of_2(t)
    places = _TOKENS // per_place

    def kernel(*refs):
        token = jnp.arange(places * per_place)
        time = jax.lax.div(token, places)
        place = pl.program_id(0) * places + jax.lax.rem(token, places)
        real = (time < t) & (place < n * heads)
        together = (place[:, None] == place[None]) & (time < t)[None]
        number = (pl.program_id(1) * t + time) * n + jax.lax.div(place, heads)

        def elements(part: int, parts: int) -> jax.Array:
            row = (number * parts + part) * heads + jax.lax.rem(place, heads)
            return row[:, None] * d + jnp.arange(d)[None]

        *inputs, result = refs
        tiles = [
            triton.load(ref.at[elements(part, parts_in)], mask=real[:, None], other=0.0)
            for ref, parts_in in zip(inputs, counts, strict=True)
            for part in range(parts_in)
        ]
        for part, tile in enumerate(function(together, *tiles)):
            tile = tile.astype(result.dtype)
            triton.store(result.at[elements(part, parts)], tile, mask=real[:, None])

    counts = [array.shape[-3] for array in arrays]
    shape = (*leading, t, n, parts, heads, d)
    y = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(n * heads, places), math.prod(leading)),
        out_shape=jax.ShapeDtypeStruct((math.prod(shape),), arrays[0].dtype),
        compiler_params=triton.CompilerParams(num_warps=_WARPS),
        name=function.__name__.strip("_"),
    )(*(x.reshape(-1) for x in arrays))
    return y.reshape(shape)


HALF = (jnp.bfloat16, jnp.float16)


def cudnn_takes(q: jax.Array, factored_bias: FactoredBias | None) -> bool:
    """Whether cuDNN's attention runs here; it cannot be traced for other machines."""
    width = q.shape[-1] + (factored_bias[1].shape[-1] if factored_bias else 0)
    return q.dtype in HALF and width <= _widest()


def _widest() -> int:
    """Channels of a head that cuDNN takes: more since Hopper."""
    compute_capability = dispatch.compute_capability()
    if not dispatch.on_gpu() or compute_capability < dispatch.AMPERE:
        return 0
    return 256 if compute_capability >= 9 else 128


def _attend_by_cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    factored_bias: FactoredBias | None,
    length: int,
) -> jax.Array:
    """`attend` without the scores ever in memory.

    The two factors of the bias become further channels of queries and keys. cuDNN wants
    channels in multiples of 8 and even lengths; the padding is zero or masked.
    """
    n, width = q.shape[-3], v.shape[-1]
    leading, scale = q.shape[:-3], q.shape[-1] ** -0.5
    if factored_bias is not None:
        q, scale = q * scale, 1.0  # the bias is not scaled
        values, one_hot = factored_bias
        values = jnp.broadcast_to(values, (*q.shape[:-1], values.shape[-1]))
        ones = jnp.asarray(one_hot, k.dtype)[..., None, :]
        ones = jnp.broadcast_to(ones, (*k.shape[:-1], ones.shape[-1]))
        q = jnp.concatenate([q, values.astype(q.dtype)], -1)
        k = jnp.concatenate([k, ones], -1)
    channels = -(-q.shape[-1] // 8) * 8

    def padded(x: jax.Array) -> jax.Array:
        x = x.reshape(math.prod(leading), *x.shape[-3:])
        margins = (0, x.shape[1] % 2), (0, 0), (0, channels - x.shape[-1])
        return jnp.pad(x, ((0, 0), *margins))

    q, k, v = padded(q), padded(k), padded(v)
    lengths = [jnp.full(len(q), x, jnp.int32) for x in (q.shape[1], length)]
    masked = length < k.shape[1]
    y = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        query_seq_lengths=lengths[0] if masked else None,
        key_value_seq_lengths=lengths[1] if masked else None,
        implementation="cudnn",
    )
    return y[:, :n, :, :width].reshape(*leading, n, -1, width)
