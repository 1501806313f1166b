"""X3D: a channel-wise separable 3D network (Feichtenhofer, arXiv:2004.04730).

>>> import jax, jax.numpy as jnp
>>> model = X3D(num_classes=5, frames=4, size=64, **VARIANTS["x3d_xs_small"])
>>> video = jnp.zeros((1, 4, 64, 64, 3))
>>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
>>> logits.shape
(1, 5)
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from leaps_jax.kernels.padding import channel_padding, pad_parameters
from leaps_jax.models.layers import (
    BatchNorm,
    Conv,
    DepthwiseConv,
    sliding_average,
)


class Stem(nn.Module):
    """A spatial, then a channel-wise temporal convolution, nothing between them."""

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        n, dtype = self.features, self.dtype
        x = Conv(n, (1, 3, 3), (1, 2, 2), dtype=dtype, name="conv_space")(x)
        x = DepthwiseConv((5, 1, 1), dtype=dtype, name="conv_time")(x)
        return BatchNorm(not train, name="norm")(x, activation=nn.relu)


class SqueezeExcite(nn.Module):
    """Gates every channel by the clip's mean (b, c) of all channels, in float32."""

    @nn.compact
    def __call__(self, x: jax.Array, mean: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        y = nn.relu(nn.Dense(squeezed(channels), name="squeeze")(mean))
        gate = nn.sigmoid(nn.Dense(channels, name="excite")(y))
        return x * gate[:, None, None, None, :].astype(x.dtype)


def squeezed(channels: int) -> int:
    """A sixteenth of the channels, to the nearest multiple of 8 not below nine tenths.

    >>> [squeezed(n) for n in (54, 108, 216, 432)]
    [8, 8, 16, 32]
    """
    wanted = channels / 16
    width = max(8, int(wanted + 4) // 8 * 8)
    return width + 8 if width < 0.9 * wanted else width


class Block(nn.Module):
    """Pointwise, channel-wise 3x3x3 and pointwise convolution around a shortcut."""

    features: int
    inner: int
    stride: int
    gated: bool
    shortcut_norm_on_stride: bool
    dtype: jnp.dtype | None = None
    padding: int = 0  # inner channels of zeros

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        n, inner, dtype = self.features, self.inner + self.padding, self.dtype
        norm = functools.partial(BatchNorm, not train, channels=self.inner)
        stride = (1, self.stride, self.stride)
        shortcut, widens = x, x.shape[-1] != n
        if widens or self.stride != 1:
            shortcut = Conv(n, (1, 1, 1), stride, dtype=dtype, name="shortcut_conv")(x)
            if widens or self.shortcut_norm_on_stride:
                norm_of = BatchNorm(not train, name="shortcut_norm")
                shortcut = norm_of(shortcut)
        x = Conv(inner, (1, 1, 1), dtype=dtype, name="conv_a")(x)
        x = norm(name="norm_a")(x, activation=nn.relu)
        x = DepthwiseConv((3, 3, 3), stride, dtype, name="conv_b")(x)
        if self.gated:
            x, mean = norm(name="norm_b").with_mean(x)
            x = nn.swish(SqueezeExcite(name="gate")(x, mean))
        else:
            x = norm(name="norm_b")(x, activation=nn.swish)
        x = Conv(n, (1, 1, 1), dtype=dtype, name="conv_c")(x)
        # a scale of zero makes the block the identity when training starts
        zeros = nn.initializers.zeros_init()
        last = BatchNorm(not train, scale_init=zeros, name="norm_c")
        return last(x, activation=nn.relu, residual=shortcut)


class Stage(nn.Module):
    """Blocks of one width; the first halves height and width, every other is gated."""

    depth: int
    features: int
    inner: int
    shortcut_norm_on_stride: bool
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        block: Any = Block
        fixed = not train and not self.is_initializing()
        padding = channel_padding(self.inner) if fixed else 0
        if padding:
            block = pad_parameters(Block, self.inner, padding)
        if self.remat:
            # 2: `train`, counted with `self`
            block = nn.remat(block, static_argnums=(2,))
        for i in range(self.depth):
            x = block(
                self.features,
                self.inner,
                stride=2 if i == 0 else 1,
                gated=i % 2 == 0,
                shortcut_norm_on_stride=self.shortcut_norm_on_stride,
                dtype=self.dtype,
                padding=padding,
                name=f"block{i}",
            )(x, train)
        return x


class Head(nn.Module):
    """Widens, averages over a sliding window, and widens every position again."""

    features: int
    outer: int
    window: tuple[int, int, int]
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(self.features, (1, 1, 1), dtype=self.dtype, name="conv")(x)
        x = BatchNorm(not train, name="norm")(x, activation=nn.relu)
        x = sliding_average(x, self.window, "X3D")  # b t' h' w' c in float32
        return nn.relu(nn.Dense(self.outer, use_bias=False, name="expand")(x))


class X3D(nn.Module):
    """An X3D classifier.

    Attributes:
      num_classes: logits.
      frames: of the clips it is made for; sets the head's window.
      size: height and width it is made for, in pixels; likewise (size / 32, rounded
        up). On larger inputs the window slides and the logits are averaged.
      depths: blocks per stage.
      features: width per stage; the first is the stem's too.
      inner: width inside the blocks per stage.
      outer: width before the classifier.
      shortcut_norm_on_stride: whether the shortcut of stage 1, which strides but does
        not widen, has a norm: it has in SlowFast, it has not in pytorchvideo.
      dropout: rate before the classifier, in training.
      dtype: compute type of convolutions, None for float32; parameters are float32.
      remat: recompute each block in the backward pass instead of keeping it.
    """

    num_classes: int = 400
    frames: int = 16
    size: int = 224
    depths: tuple[int, ...] = (3, 5, 11, 7)
    features: tuple[int, ...] = (24, 48, 96, 192)
    inner: tuple[int, ...] = (54, 108, 216, 432)
    outer: int = 2048
    shortcut_norm_on_stride: bool = True
    dropout: float = 0.5
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, video: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (b, classes) in float32 of a normalised video (b, t, h, w, 3).

        Raises:
          ValueError: the video is shorter or smaller than the head's window.
        """
        x = Stem(self.features[0], self.dtype, name="stem")(video, train=train)
        stages = zip(self.depths, self.features, self.inner, strict=True)
        for i, (depth, features, inner) in enumerate(stages):
            x = Stage(
                depth,
                features,
                inner,
                self.shortcut_norm_on_stride,
                self.dtype,
                self.remat,
                name=f"stage{i + 1}",
            )(x, train=train)
        edge = -(-self.size // 32)
        window = (self.frames, edge, edge)
        x = Head(self.inner[-1], self.outer, window, self.dtype, name="head")(
            x, train=train
        )
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(self.num_classes, name="classifier")(x)
        return x.mean((1, 2, 3))


# Table 1 and section 4 of arXiv:2004.04730; SlowFast's configs X3D_{XS,S,M,L}. XS, S
# and M are one network at growing clips; L is deeper.
VARIANTS: dict[str, dict[str, Any]] = {
    "x3d_xs": {"depths": (3, 5, 11, 7)},
    "x3d_s": {"depths": (3, 5, 11, 7)},
    "x3d_m": {"depths": (3, 5, 11, 7)},
    "x3d_l": {"depths": (5, 10, 25, 15)},
    # this project's: for small data sets
    "x3d_xs_small": {"depths": (2, 3, 4, 3)},
}
