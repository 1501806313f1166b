"""Layers that several families share, with torch's conventions stated once.

A norm layer here returns its input from a method of its own, `observe`, so that
Flax's `capture_intermediates` records what enters the norm. `time_axis` says which
axis of that tensor is time (None where no axis is).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.models import convolutions
from leaps_jax.models.convolutions import Size3

# Embeddings start small, matrices by their width: at a standard deviation of 0.02 a
# narrow transformer learns far slower.
truncated_normal = nn.initializers.truncated_normal(0.02)
xavier_uniform = nn.initializers.xavier_uniform()


class BatchNorm(nn.BatchNorm):
    """Batch norm over (b, t, h, w, c), computed in float32; torch's eps."""

    epsilon: float = 1e-5
    momentum: float = 0.9  # torch calls this 0.1
    time_axis: int | None = 1

    def observe(self, x: jax.Array) -> jax.Array:
        return x

    def __call__(self, x, use_running_average=None, *, mask=None):
        x = self.observe(x)
        y = super().__call__(
            x.astype(jnp.float32), use_running_average=use_running_average, mask=mask
        )
        return y.astype(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm over channels, computed in float32 by the two-pass formula.

    `time_steps` tells that `time_axis` is a sequence of tokens, class tokens and then
    those of each step in turn: (b, class_tokens + time_steps * n, c).
    """

    epsilon: float = 1e-6
    use_fast_variance: bool = False
    time_axis: int | None = None
    time_steps: int | None = None
    class_tokens: int = 1

    def observe(self, x: jax.Array) -> jax.Array:
        return x

    def __call__(self, x, *, mask=None):
        x = self.observe(x)
        return super().__call__(x.astype(jnp.float32), mask=mask).astype(x.dtype)


LookedUp = tuple[jax.Array, jax.Array | np.ndarray]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None = None,
    looked_up: LookedUp | None = None,
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

    Returns:
      (..., n, heads, d).
    """
    q = q * q.shape[-1] ** -0.5
    plain = bias is None and looked_up is None
    if plain and q.shape[-3] * k.shape[-3] <= _FEW:
        return jax.lax.platform_dependent(
            q, k, v, cuda=_attend_among_few, default=_attend_by_products
        )
    if _cudnn_takes(q, looked_up):
        return _attend_by_cudnn(q, k, v, bias, looked_up)
    return _attend_by_products(q, k, v, bias, looked_up)


def _attend_by_products(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None = None,
    looked_up: LookedUp | None = None,
) -> jax.Array:
    """`attend` of scaled queries, by its definition."""
    scores = jnp.einsum(
        "...nhd,...mhd->...hnm", q, k, preferred_element_type=jnp.float32
    )
    if bias is not None:
        scores += bias
    if looked_up is not None:
        scores += look_up(*looked_up)
    weights = nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("...hnm,...mhd->...nhd", weights, v)


@jax.jit
def look_up(values: jax.Array, properties: jax.Array | np.ndarray) -> jax.Array:
    """A look-up (..., heads, n, m), written as a product with zeros and ones."""
    properties = properties.astype(values.dtype)
    return jnp.einsum("...nhe,...me->...hnm", values, properties)


_FEW = 64  # scores of one head: those of 8 time steps


def _attend_among_few(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attend` without matrix products, which such small ones leave mostly idle."""
    q, k, v32 = (x.astype(jnp.float32) for x in (q, k, v))
    scores = (q[..., :, None, :, :] * k[..., None, :, :, :]).sum(-1)  # n m heads
    weights = nn.softmax(scores, axis=-2)[..., None]
    return (weights * v32[..., None, :, :, :]).sum(-3).astype(v.dtype)


def _cudnn_takes(q: jax.Array, looked_up: LookedUp | None) -> bool:
    # decided while tracing: the operation cannot be traced for a machine without it
    width = q.shape[-1] + (looked_up[1].shape[-1] if looked_up else 0)
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return jax.default_backend() == "gpu" and half and width <= 128


def _attend_by_cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    looked_up: LookedUp | None,
) -> jax.Array:
    """`attend` of scaled queries, without the scores ever in memory.

    What is looked up becomes further channels of queries and keys. cuDNN wants channels
    of one count, a multiple of 8, and even lengths; what pads them is zero or masked.
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

    def padded(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, *x.shape[-3:])
        margins = (0, x.shape[1] % 2), (0, 0), (0, channels - x.shape[-1])
        return jnp.pad(x, ((0, 0), *margins))

    q, k, v = padded(q), padded(k), padded(v)
    if bias is not None:
        bias = jnp.pad(bias, ((0, 0), (0, n % 2), (0, m % 2)))[None].astype(q.dtype)
    odd = n % 2 or m % 2
    y = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias,
        scale=1.0,
        query_seq_lengths=jnp.full(len(q), n, jnp.int32) if odd else None,
        key_value_seq_lengths=jnp.full(len(q), m, jnp.int32) if odd else None,
        implementation="cudnn",
    )
    return y[:, :n, :, :width].reshape(*leading, n, -1, width)


class Mlp(nn.Module):
    """Two layers with a GELU between them.

    Attributes:
      hidden: channels between the layers.
      width: channels after them, those before if None.
      tanh_gelu: approximate the GELU by a tanh; exact if False.
      dtype: compute type, None for float32.
    """

    hidden: int
    width: int | None = None
    tanh_gelu: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1] if self.width is None else self.width
        x = nn.Dense(
            self.hidden, dtype=self.dtype, kernel_init=xavier_uniform, name="fc1"
        )(x)
        x = nn.gelu(x, approximate=self.tanh_gelu)
        return nn.Dense(
            width, dtype=self.dtype, kernel_init=xavier_uniform, name="fc2"
        )(x)


class Conv(nn.Module):
    """A 3D convolution, padded by k // 2 on both sides as torch's are.

    Flax's 'SAME' would pad the end alone at stride 2.

    Attributes:
      features: channels that come out.
      kernel: its time, height and width; or height and width, frame by frame, and then
        its parameter has these alone.
      stride: of time, height and width.
      padding: likewise; k // 2 if None.
      use_bias: whether one is added.
      dtype: compute type, None for float32.
      kernel_init: of the kernel.
    """

    features: int
    kernel: tuple[int, ...]
    stride: Size3 = (1, 1, 1)
    padding: Size3 | None = None
    use_bias: bool = False
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(
        2.0, "fan_out", "normal"
    )

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, t, h, w, c) to (b, t', h', w', features)."""
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        kernel = kernel.reshape(-1, *shape[-4:])
        padding = self.padding
        if padding is None:
            t, h, w = (k // 2 for k in kernel.shape[:3])
            padding = (t, h, w)
        dtype = self.dtype or jnp.promote_types(x.dtype, jnp.float32)
        y = convolutions.convolve(
            x.astype(dtype), kernel.astype(dtype), self.stride, padding
        )
        if self.use_bias:
            zeros = nn.initializers.zeros_init()
            y += self.param("bias", zeros, (self.features,)).astype(dtype)
        return y


def patch_embedding(
    width: int, patch: Size3 | tuple[int, int], *, use_bias: bool = True, **fields: Any
) -> Conv:
    """The convolution, as wide as its stride, that makes every patch a token."""
    t, h, w = (1, *patch)[-3:]
    return Conv(
        width,
        patch,
        (t, h, w),
        padding=(0, 0, 0),
        use_bias=use_bias,
        kernel_init=nn.initializers.lecun_normal(),
        **fields,
    )


class ConvStem(nn.Module):
    """Convolutions before the patches of a transformer are cut.

    Each halves height and width; the last sees three frames. With them a transformer
    that is trained from scratch learns sooner (Xiao et al., "Early convolutions help
    transformers see better", arXiv:2106.14881).

    Attributes:
      widths: channels after each convolution.
      dtype: compute type, None for float32.
    """

    widths: tuple[int, ...]
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, t, h, w, c) to (b, t, h / 2^n, w / 2^n, widths[-1])."""
        for i, width in enumerate(self.widths):
            kernel = (3 if i == len(self.widths) - 1 else 1, 3, 3)
            x = Conv(width, kernel, (1, 2, 2), dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.gelu(LayerNorm(time_axis=1, name=f"norm{i}")(x))
        return x


class DepthwiseConv(nn.Module):
    """A 3D convolution of every channel by itself, padded as `Conv`.

    Its kernel is (t, h, w, 1, c / heads), as `nn.Conv` with a group per channel would
    have it.

    Attributes:
      kernel: its size, odd.
      stride: per axis.
      dtype: compute type, None for float32; sums are in float32.
      use_bias: whether one is added.
      heads: runs of channels, one after another, that share the kernel.
    """

    kernel: Size3
    stride: Size3 = (1, 1, 1)
    dtype: jnp.dtype | None = None
    use_bias: bool = False
    heads: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # by fan-in: Flax would count the outputs of all channels in the fan-out
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        shape = (*self.kernel, 1, x.shape[-1] // self.heads)
        kernel = jnp.tile(self.param("kernel", init, shape), self.heads)
        dtype = self.dtype or jnp.promote_types(x.dtype, jnp.float32)
        y = convolutions.depthwise(x.astype(dtype), kernel.astype(dtype), self.stride)
        if self.use_bias:
            zeros = nn.initializers.zeros_init()
            y += self.param("bias", zeros, (x.shape[-1],)).astype(dtype)
        return y


def max_pool(x: jax.Array, window: Size3, stride: Size3, padding: Size3) -> jax.Array:
    """Max pooling of (b, t, h, w, c) with the same padding on both sides."""
    return nn.max_pool(x, window, stride, [(p, p) for p in padding])


def sliding_average(x: jax.Array, window: Sequence[int], model: str) -> jax.Array:
    """Average of (b, t, h, w, c) in a fixed window that slides with stride 1.

    Raises:
      ValueError: the features are smaller than the window, that is the clip is
        shorter or smaller than the architecture can take.
    """
    if any(n < k for n, k in zip(x.shape[1:4], window, strict=True)):
        have = "x".join(map(str, x.shape[1:4]))
        need = "x".join(map(str, window))
        raise ValueError(
            f"{model}: its head averages over {need} features (frames x height x width)"
            f" and the clip gives {have}; use more frames or a larger size"
        )
    if tuple(x.shape[1:4]) == tuple(window):
        return jnp.mean(x, axis=(1, 2, 3), keepdims=True, dtype=jnp.float32)
    return nn.avg_pool(x.astype(jnp.float32), tuple(window), (1, 1, 1), "VALID")
