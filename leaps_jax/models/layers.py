"""Layers that several families share, with torch's conventions stated once.

A norm layer is a `NormLayer`: what enters it can be captured by Flax.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from leaps_jax.kernels import convolutions, depthwise
from leaps_jax.kernels.attention import attend
from leaps_jax.kernels.convolutions import Size3
from leaps_jax.kernels.gelu import gelu
from leaps_jax.kernels.normalization import (
    Then,
    layer_norm,
    observed_batch_norm,
    observed_layer_norm,
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

    `channels` tells that those after them only fill the input up.
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
        then: Then | None = None,
        added: jax.Array | None = None,
    ) -> jax.Array:
        """`then(norm(x) + added)`.

        On a GPU that is one kernel where `then` is given, `unchanged` if nothing
        follows; without it the norm is left to be one with what the caller does.
        """
        if then and self._is_a_kernel(use_running_average):
            y, *_ = self._by_kernel(x, then, added)
            return y
        self.observe(x)
        y = super().__call__(
            x.astype(jnp.float32), use_running_average=use_running_average, mask=mask
        )
        y = y.astype(x.dtype)
        if added is not None:
            y += added
        return then(y) if then else y

    def with_mean(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """norm(x), and its mean over positions, (b, c) in float32."""
        if not self._is_a_kernel():
            y = self(x)
            return y, y.mean((1, 2, 3), dtype=jnp.float32)
        y, first, factor = self._by_kernel(x, unchanged)
        return y, first * factor + self.variables["params"]["bias"]

    def _is_a_kernel(self, use_running_average: bool | None = None) -> bool:
        # decided while tracing: nobody else would want the moments
        given = bool(use_running_average or self.use_running_average)
        return given and jax.default_backend() == "gpu" and not self.is_initializing()

    def _by_kernel(
        self, x: jax.Array, then: Then, added: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Also how far the input's mean is off the given one, and the norm's factor."""
        self.observe(x)
        known = {**self.variables["batch_stats"], **self.variables["params"]}
        factor = known["scale"] * jax.lax.rsqrt(known["var"] + self.epsilon)
        offset = known["bias"] - known["mean"] * factor
        y, first, second = observed_batch_norm(
            x, factor, offset, known["mean"], then, added
        )
        moments = (known["mean"], first, second)
        self.record_moments(tuple(m[..., : self.channels] for m in moments))
        return y, first, factor


def unchanged(x: jax.Array) -> jax.Array:
    """What follows a norm that nothing follows."""
    return x


def row_major(x: jax.Array) -> jax.Array:
    """Has XLA for GPUs keep channels next to each other.

    Left to itself it turns the tokens of some transformers around so that positions
    are, and back for every matrix product.
    """
    layout = Layout(tuple(range(x.ndim)))
    return jax.lax.platform_dependent(
        x, cuda=lambda x: with_layout_constraint(x, layout), default=lambda x: x
    )


class Seen(NamedTuple):
    """What there is to observe of tokens that are more than those of the network.

    Attributes:
      part: makes it of them.
      counted: which tokens are in it, of the shape of all without batch and channels.
    """

    part: Callable[[jax.Array], jax.Array]
    counted: np.ndarray


def first_tokens(length: int, shape: tuple[int, ...]) -> Seen:
    """So many of (b, ..., n, c)."""
    counted = np.broadcast_to(np.arange(shape[-2]) < length, shape[1:-1])
    return Seen(lambda x: x[..., :length, :], counted)


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

    def __call__(self, x: jax.Array, seen: Seen | None = None) -> jax.Array:
        """Maps (b, ..., c) to the same shape; see `beside`."""
        return self.beside(x, seen)[1]

    @nn.compact
    def beside(
        self, x: jax.Array, seen: Seen | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """(b, ..., c) as it is, and normalised.

        What is added to a function of the norm is best the first of these: its gradient
        is then a part of the norm's. `seen` tells what there is to observe, where it
        has more tokens than the network that it stands for.
        """
        x = row_major(x)
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        if jax.default_backend() == "gpu":
            counted = seen and seen.counted
            x, y, mean = observed_layer_norm(x, scale, bias, self.epsilon, counted)
            self.record_moments((jnp.zeros_like(mean[0]), mean))
        else:
            y = layer_norm(x, scale, bias, self.epsilon)
        self.observe(seen.part(x) if seen else x)
        return x, self.output(y)


@jax.custom_vjp
def apart(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three of one, which XLA for GPUs takes for three."""
    return jax.lax.platform_dependent(
        x,
        cuda=lambda x: jax.lax.optimization_barrier((x, x, x)),
        default=lambda x: (x, x, x),
    )


# in an order in which XLA adds each product to those before it
apart.defvjp(lambda x: (apart(x), None), lambda _, g: (g[0] + (g[1] + g[2]),))


class QueriesKeysValues(nn.Module):
    """Queries of one sequence, keys and values of another, by columns of one matrix.

    Each is a product by itself: cut out of one they would be copied, and of different
    sequences computed in vain. XLA for GPUs would make one of those of one sequence.
    """

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

        of_query, of_key, of_value = x, context, context
        if x is context:
            of_query, of_key, of_value = apart(x)

        def product(x: jax.Array, part: int) -> jax.Array:
            columns = slice(part * c, (part + 1) * c)
            y = x @ kernel[:, columns] + bias[columns]
            return y.reshape(*y.shape[:-1], self.heads, -1)

        return product(of_query, 0), product(of_key, 1), product(of_value, 2)


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
