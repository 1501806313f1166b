"""Layers that several families share, with torch's conventions stated once.

A norm layer is a `NormLayer`: what enters it can be captured by Flax.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.kernels import convolutions, depthwise
from leaps_jax.kernels.attention import attend
from leaps_jax.kernels.convolutions import Size3
from leaps_jax.kernels.gelu import gelu
from leaps_jax.kernels.normalization import (
    Activation,
    batch_norm,
    identity,
    layer_norm,
)

# Of a norm's input, relative to values (c,): these values, the mean over positions and,
# from a batch norm, the mean of squares, each (b, c).
KnownMoments = tuple[jax.Array, ...]

#: Where Flax's intermediates have the `KnownMoments` of a norm's input; no method can
#: have this name.
INPUT_MOMENTS = "moments of the input"

# Embeddings start small, matrices by their width: at a standard deviation of 0.02 a
# narrow transformer learns far slower.
truncated_normal = nn.initializers.truncated_normal(0.02)
xavier_uniform = nn.initializers.xavier_uniform()


class NormLayer:
    """Marks the norm layers of this package.

    Each returns its input from the method `observe`, so that Flax's
    `capture_intermediates` can record it. The attribute `time_axis` tells which axis of
    that tensor is time, None for no axis.
    """

    def record_moments(self, known: KnownMoments) -> None:
        """Records moments of the input, so that nobody computes them again."""
        self.sow("intermediates", INPUT_MOMENTS, known)  # type: ignore[attr-defined]


class BatchNorm(NormLayer, nn.BatchNorm):
    """Batch norm over (b, t, h, w, c), computed in float32; torch's eps.

    `channels` tells that those after them are padding.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9  # torch calls this 0.1
    time_axis: int | None = 1
    channels: int | None = None

    def observe(self, x: jax.Array) -> jax.Array:
        return x[..., : self.channels]

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        activation: Activation = identity,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """`activation(norm(x) + residual)`."""
        if self._is_fixed(use_running_average):
            y, *_ = self._with_moments(x, activation, residual)
            return y
        self.observe(x)
        y = super().__call__(
            x.astype(jnp.float32), use_running_average=use_running_average, mask=mask
        )
        y = y.astype(x.dtype)
        return activation(y if residual is None else y + residual)

    def with_mean(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """norm(x), and its mean over positions, (b, c) in float32."""
        if not self._is_fixed():
            y = self(x)
            return y, y.mean((1, 2, 3), dtype=jnp.float32)
        y, first, factor = self._with_moments(x)
        return y, first * factor + self.variables["params"]["bias"]

    def _is_fixed(self, use_running_average: bool | None = None) -> bool:
        """Whether the statistics are given, not those of the batch."""
        given = bool(use_running_average or self.use_running_average)
        return given and not self.is_initializing()

    def _with_moments(
        self,
        x: jax.Array,
        activation: Activation = identity,
        residual: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Also how far the input's mean is off the given one, and the norm's factor."""
        self.observe(x)
        known = {**self.variables["batch_stats"], **self.variables["params"]}
        factor = known["scale"] * jax.lax.rsqrt(known["var"] + self.epsilon)
        offset = known["bias"] - known["mean"] * factor
        y, first, second = batch_norm(
            x, factor, offset, known["mean"], activation, residual
        )
        moments = (known["mean"], first, second)
        self.record_moments(tuple(m[..., : self.channels] for m in moments))
        return y, first, factor


class Selection(NamedTuple):
    """Which of the tokens that enter a norm its tap shows.

    Attributes:
      select: the tap, made of the tokens.
      mask: which tokens are in it, of their shape without batch and channels.
    """

    select: Callable[[jax.Array], jax.Array]
    mask: np.ndarray


def first_tokens(length: int, shape: tuple[int, ...]) -> Selection:
    """So many of (b, ..., n, c); the rest is padding."""
    mask = np.broadcast_to(np.arange(shape[-2]) < length, shape[1:-1])
    return Selection(lambda x: x[..., :length, :], mask)


class LayerNorm(NormLayer, nn.Module):
    """Layer norm over channels, computed in float32 by the two-pass formula.

    `time_steps` tells that `time_axis` is a sequence of tokens, class tokens and then
    those of each step in turn: (b, class_tokens + time_steps * n, c).
    """

    epsilon: float = 1e-6
    time_axis: int | None = None
    time_steps: int | None = None
    class_tokens: int = 1

    def observe(self, x: jax.Array) -> jax.Array:
        return x

    def output(self, y: jax.Array) -> jax.Array:
        return y

    def __call__(self, x: jax.Array, tapped: Selection | None = None) -> jax.Array:
        """Maps (b, ..., c) to the same shape; a tap shows all tokens by default."""
        return self.with_residual(x, tapped)[1]

    @nn.compact
    def with_residual(
        self, x: jax.Array, tapped: Selection | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`x`, and its norm.

        A GPU adds the gradients of both in one kernel if the first is what is added to
        a function of the second.
        """
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        mask = tapped.mask if tapped else None
        x, y, mean = layer_norm(x, scale, bias, self.epsilon, mask)
        self.record_moments((jnp.zeros_like(mean[0]), mean))
        self.observe(tapped.select(x) if tapped else x)
        return x, self.output(y)


class QueriesKeysValues(nn.Module):
    """Queries of one sequence, keys and values of another, by columns of one matrix."""

    heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Maps (..., n, c) and (..., m, c) to (..., n or m, heads, c / heads)."""
        c = x.shape[-1]
        kernel = self.param("kernel", xavier_uniform, (c, 3 * c))
        bias = self.param("bias", nn.initializers.zeros_init(), (3 * c,))
        x, context, kernel, bias = nn.dtypes.promote_dtype(
            x, context, kernel, bias, dtype=self.dtype
        )

        def product(x: jax.Array, part: int) -> jax.Array:
            columns = slice(part * c, (part + 1) * c)
            y = x @ kernel[:, columns] + bias[columns]
            return y.reshape(*y.shape[:-1], self.heads, -1)

        return product(x, 0), product(context, 1), product(context, 2)


class Attention(nn.Module):
    """Multi-head attention of a sequence to a context, along the last but one axis.

    Attributes:
      heads: of attention.
      dtype: compute type.
    """

    heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        length: int | None = None,
    ) -> jax.Array:
        """Maps (..., n, c) and (..., m, c), itself if None, to (..., n, c).

        `length` tells how many tokens of the context, the first, are real.
        """
        context = x if context is None else context
        q, k, v = QueriesKeysValues(self.heads, self.dtype, name="qkv")(x, context)
        x = attend(q, k, v, length=length).reshape(x.shape)
        return nn.Dense(
            x.shape[-1], dtype=self.dtype, kernel_init=xavier_uniform, name="proj"
        )(x)


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
        x = gelu(x, self.tanh_gelu)
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
        y = depthwise.convolve(x.astype(dtype), kernel.astype(dtype), self.stride)
        if self.use_bias:
            zeros = nn.initializers.zeros_init()
            y += self.param("bias", zeros, (x.shape[-1],)).astype(dtype)
        return y


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
