"""3D ResNets of bottleneck blocks, of 50 and 101 layers.

Slow is the slow pathway of SlowFast (Feichtenhofer et al., arXiv:1812.03982): time is
convolved late and never strided. I3D (Carreira & Zisserman, arXiv:1705.07750, as a
ResNet in arXiv:1711.07971) convolves it early and halves it once; C2D is I3D without
temporal convolutions. R(2+1)D (Tran et al., arXiv:1711.11248) and CSN (Tran et al.,
arXiv:1904.02811) see time in the middle of every block and stride it: R(2+1)D in a
convolution of its own before the spatial one, CSN in one that keeps channels apart.

>>> import jax, jax.numpy as jnp
>>> model = ResNet(num_classes=5, frames=4, size=32, **VARIANTS["slow_r50_small"])
>>> video = jnp.zeros((1, 4, 32, 32, 3))
>>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
>>> logits.shape
(1, 5)
"""

import functools
import math
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from leaps_jax.kernels.pooling import max_pool
from leaps_jax.models.layers import (
    BatchNorm,
    Conv,
    DepthwiseConv,
    Size3,
    sliding_average,
)

Middle = Literal["space", "time-space", "channel-wise"]


class Stem(nn.Module):
    """Convolution, norm and ReLU at half the height and width; a pool halves again."""

    features: int
    kernel_time: int
    pool: bool
    norm_epsilon: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        kernel = (self.kernel_time, 7, 7)
        x = Conv(self.features, kernel, (1, 2, 2), dtype=self.dtype, name="conv")(x)
        norm = BatchNorm(not train, epsilon=self.norm_epsilon, name="norm")
        x = norm(x, activation=nn.relu)
        return max_pool(x, (1, 3, 3), (1, 2, 2), (0, 1, 1)) if self.pool else x


class TimeThenSpace(nn.Module):
    """A temporal and a spatial convolution, a norm and a ReLU between them.

    Each strides its own axes.
    """

    features: int
    stride: Size3
    norm_epsilon: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        n, dtype, (t, h, w) = self.features, self.dtype, self.stride
        x = Conv(n, (3, 1, 1), (t, 1, 1), dtype=dtype, name="conv_time")(x)
        norm = BatchNorm(not train, epsilon=self.norm_epsilon, name="norm")
        x = norm(x, activation=nn.relu)
        return Conv(n, (1, 3, 3), (1, h, w), dtype=dtype, name="conv_space")(x)


class Bottleneck(nn.Module):
    """A convolution that narrows, the middle, and one that widens, and a shortcut."""

    inner: int
    kernel_time: int
    stride: Size3
    middle: Middle
    norm_epsilon: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inner, outer, dtype = self.inner, 4 * self.inner, self.dtype
        norm = functools.partial(BatchNorm, not train, epsilon=self.norm_epsilon)
        shortcut, stride = x, self.stride
        if x.shape[-1] != outer or stride != (1, 1, 1):
            shortcut = Conv(
                outer, (1, 1, 1), stride, dtype=dtype, name="shortcut_conv"
            )(x)
            shortcut = norm(name="shortcut_norm")(shortcut)
        x = Conv(inner, (self.kernel_time, 1, 1), dtype=dtype, name="conv_a")(x)
        x = norm(name="norm_a")(x, activation=nn.relu)
        match self.middle:
            case "space":
                x = Conv(inner, (1, 3, 3), stride, dtype=dtype, name="conv_b")(x)
            case "time-space":
                x = TimeThenSpace(
                    inner, stride, self.norm_epsilon, dtype, name="conv_b"
                )(x, train=train)
            case "channel-wise":
                x = DepthwiseConv((3, 3, 3), stride, dtype, name="conv_b")(x)
            case other:
                known = ", ".join(get_args(Middle))
                raise ValueError(f"middle={other!r}: must be one of {known}")
        x = norm(name="norm_b")(x, activation=nn.relu)
        x = Conv(outer, (1, 1, 1), dtype=dtype, name="conv_c")(x)
        # a scale of zero makes the block the identity when training starts
        last = norm(scale_init=nn.initializers.zeros_init(), name="norm_c")
        return last(x, activation=nn.relu, residual=shortcut)


class Stage(nn.Module):
    """Blocks of one width; the first strides."""

    depth: int
    inner: int
    kernel_times: tuple[int, ...]
    stride: Size3
    middle: Middle
    norm_epsilon: float
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        # 2: `train`, counted with `self`
        block = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        for i in range(self.depth):
            x = block(
                self.inner,
                self.kernel_times[i % len(self.kernel_times)],
                self.stride if i == 0 else (1, 1, 1),
                self.middle,
                self.norm_epsilon,
                self.dtype,
                name=f"block{i}",
            )(x, train)
        return x


class ResNet(nn.Module):
    """A 3D ResNet classifier.

    The head averages over a fixed window, all the features of the clip that it is made
    for, that slides over larger inputs; the logits of all positions are averaged.

    Attributes:
      num_classes: logits.
      frames: of the clips it is made for; sets the head's window.
      size: height and width it is made for, in pixels; likewise (size / 32, rounded
        up).
      depths: blocks per stage.
      inner: width inside the blocks per stage; a block's output is 4 times as wide.
      kernel_times: per stage, the temporal kernels of `conv_a` of its blocks, cycled.
      strides: per stage, of its first block: in time, and in height and width.
      middle: the middle convolution of a block, `conv_b`: "space" is 1x3x3,
        "time-space" 3x1x1 and then 1x3x3, "channel-wise" a depthwise 3x3x3.
      stem_features: width of the stem.
      stem_time: temporal kernel of the stem.
      stem_pool: whether a max pool that halves height and width ends the stem.
      pool_time: factor by which a max pool after stage 1 shortens time.
      norm_epsilon: added to the variances by the norms.
      dropout: rate before the classifier, in training.
      dtype: compute type of convolutions, None for float32; parameters are float32.
      remat: recompute each block in the backward pass instead of keeping it.
    """

    num_classes: int = 400
    frames: int = 8
    size: int = 224
    depths: tuple[int, ...] = (3, 4, 6, 3)
    inner: tuple[int, ...] = (64, 128, 256, 512)
    kernel_times: tuple[tuple[int, ...], ...] = ((1,), (1,), (3,), (3,))
    strides: tuple[tuple[int, int], ...] = ((1, 1), (1, 2), (1, 2), (1, 2))
    middle: Middle = "space"
    stem_features: int = 64
    stem_time: int = 1
    stem_pool: bool = True
    pool_time: int = 1
    norm_epsilon: float = 1e-5
    dropout: float = 0.5
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, video: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (b, classes) in float32 of a normalised video (b, t, h, w, 3).

        Raises:
          ValueError: the video is shorter or smaller than the head's window.
        """
        x = Stem(
            self.stem_features,
            self.stem_time,
            self.stem_pool,
            self.norm_epsilon,
            self.dtype,
            name="stem",
        )(video, train=train)
        stages = zip(
            self.depths, self.inner, self.kernel_times, self.strides, strict=True
        )
        for i, (depth, inner, kernel_times, (time, space)) in enumerate(stages):
            x = Stage(
                depth,
                inner,
                kernel_times,
                (time, space, space),
                self.middle,
                self.norm_epsilon,
                self.dtype,
                self.remat,
                name=f"stage{i + 1}",
            )(x, train=train)
            if i == 0 and self.pool_time > 1:
                window = (self.pool_time, 1, 1)
                x = max_pool(x, window, window, (0, 0, 0))
        shrunk = math.prod(time for time, _ in self.strides)
        edge = -(-self.size // 32)
        window = (-(-(self.frames // self.pool_time) // shrunk), edge, edge)
        x = sliding_average(x, window, type(self).__name__)  # b t' h' w' c in float32
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(self.num_classes, name="classifier")(x)
        return x.mean((1, 2, 3))


# Table 1 of arXiv:1812.03982 (Slow) and of arXiv:1711.07971 (I3D, C2D); the temporal
# kernels as in SlowFast's configs SLOW_8x8_R50 and I3D_8x8_R50. SLOW_4x16 is SLOW_8x8
# at half the frames. R(2+1)D as published in pytorchvideo, where time comes before
# space and both have the same width. CSN is the interaction-reduced one of
# arXiv:1904.02811, section 3; mmaction2, who publish the R50, add 1e-3 to variances.
VARIANTS: dict[str, dict[str, Any]] = {
    "slow_r50": {"kernel_times": ((1,), (1,), (3,), (3,))},
    "slow_r50_4x16": {"kernel_times": ((1,), (1,), (3,), (3,))},
    "i3d_r50": {
        "kernel_times": ((3,), (3, 1), (3, 1), (1, 3)),
        "stem_time": 5,
        "pool_time": 2,
    },
    "c2d_r50": {"kernel_times": ((1,), (1,), (1,), (1,)), "pool_time": 2},
    "r2plus1d_r50": {
        "kernel_times": ((1,), (1,), (1,), (1,)),
        "strides": ((1, 2), (1, 2), (2, 2), (2, 2)),
        "middle": "time-space",
        "stem_pool": False,
    },
    "csn_r50": {
        "kernel_times": ((1,), (1,), (1,), (1,)),
        "strides": ((1, 1), (2, 2), (2, 2), (2, 2)),
        "middle": "channel-wise",
        "stem_time": 3,
        "norm_epsilon": 1e-3,
    },
    "csn_r101": {
        "depths": (3, 4, 23, 3),
        "kernel_times": ((1,), (1,), (1,), (1,)),
        "strides": ((1, 1), (2, 2), (2, 2), (2, 2)),
        "middle": "channel-wise",
        "stem_time": 3,
    },
    # this project's: for small data sets
    "slow_r50_small": {
        "depths": (2, 2, 2, 2),
        "inner": (32, 64, 128, 256),
        "kernel_times": ((3,), (3,), (3,), (3,)),
        "stem_features": 32,
        "stem_time": 3,
    },
    "slow_r50_tiny": {
        "depths": (2, 2, 2, 2),
        "inner": (24, 48, 96, 192),
        "kernel_times": ((3,), (3,), (3,), (3,)),
        "stem_features": 24,
        "stem_time": 3,
    },
}
