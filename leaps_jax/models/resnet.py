"""3D ResNets of bottleneck blocks: Slow, I3D and C2D, each of 50 layers.

Slow is the slow pathway of SlowFast (Feichtenhofer et al., arXiv:1812.03982): time is
convolved late and never strided. I3D (Carreira & Zisserman, arXiv:1705.07750, as a
ResNet in arXiv:1711.07971) convolves it early and halves it once; C2D is I3D without
temporal convolutions.

>>> import jax, jax.numpy as jnp
>>> model = ResNet(num_classes=5, frames=4, size=32, **VARIANTS["slow_r50_small"])
>>> video = jnp.zeros((1, 4, 32, 32, 3))
>>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
>>> logits.shape
(1, 5)
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from leaps_jax.models.layers import BatchNorm, conv, max_pool, sliding_average


class Stem(nn.Module):
    """Convolution, norm, ReLU and max pool: a quarter of the height and width."""

    features: int
    kernel_time: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        kernel = (self.kernel_time, 7, 7)
        x = conv(self.features, kernel, (1, 2, 2), dtype=self.dtype, name="conv")(x)
        x = nn.relu(BatchNorm(not train, name="norm")(x))
        return max_pool(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))


class Bottleneck(nn.Module):
    """Temporal, spatial and pointwise convolution around a shortcut."""

    inner: int
    kernel_time: int
    stride: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inner, outer, dtype = self.inner, 4 * self.inner, self.dtype
        stride = (1, self.stride, self.stride)
        shortcut = x
        if x.shape[-1] != outer or self.stride != 1:
            shortcut = conv(
                outer, (1, 1, 1), stride, dtype=dtype, name="shortcut_conv"
            )(x)
            shortcut = BatchNorm(not train, name="shortcut_norm")(shortcut)
        x = conv(inner, (self.kernel_time, 1, 1), dtype=dtype, name="conv_a")(x)
        x = nn.relu(BatchNorm(not train, name="norm_a")(x))
        x = conv(inner, (1, 3, 3), stride, dtype=dtype, name="conv_b")(x)
        x = nn.relu(BatchNorm(not train, name="norm_b")(x))
        x = conv(outer, (1, 1, 1), dtype=dtype, name="conv_c")(x)
        # a scale of zero makes the block the identity when training starts
        zeros = nn.initializers.zeros_init()
        x = BatchNorm(not train, scale_init=zeros, name="norm_c")(x)
        return nn.relu(x + shortcut)


class Stage(nn.Module):
    """Blocks of one width; the first strides height and width."""

    depth: int
    inner: int
    kernel_times: tuple[int, ...]
    stride: int
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        # 2: `train`, counted with `self`
        block = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        for i in range(self.depth):
            kernel_time = self.kernel_times[i % len(self.kernel_times)]
            stride = self.stride if i == 0 else 1
            x = block(self.inner, kernel_time, stride, self.dtype, name=f"block{i}")(
                x, train
            )
        return x


class ResNet(nn.Module):
    """A 3D ResNet classifier.

    The head averages over a fixed window, (frames, size / 32, size / 32) features, that
    slides over larger inputs; the logits of all positions are averaged.

    Attributes:
      num_classes: logits.
      frames: of the clips it is made for; sets the head's window.
      size: height and width it is made for, in pixels; likewise.
      depths: blocks per stage.
      inner: width inside the blocks per stage; a block's output is 4 times as wide.
      kernel_times: per stage, the temporal kernels of `conv_a` of its blocks, cycled.
      stem_features: width of the stem.
      stem_time: temporal kernel of the stem.
      pool_time: factor by which a max pool after stage 1 shortens time.
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
    stem_features: int = 64
    stem_time: int = 1
    pool_time: int = 1
    dropout: float = 0.5
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, video: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (b, classes) in float32 of a normalised video (b, t, h, w, 3).

        Raises:
          ValueError: the video is shorter or smaller than the head's window.
        """
        x = Stem(self.stem_features, self.stem_time, self.dtype, name="stem")(
            video, train=train
        )
        stages = zip(self.depths, self.inner, self.kernel_times, strict=True)
        for i, (depth, inner, kernel_times) in enumerate(stages):
            x = Stage(
                depth,
                inner,
                kernel_times,
                stride=1 if i == 0 else 2,
                dtype=self.dtype,
                remat=self.remat,
                name=f"stage{i + 1}",
            )(x, train=train)
            if i == 0 and self.pool_time > 1:
                window = (self.pool_time, 1, 1)
                x = max_pool(x, window, window, (0, 0, 0))
        edge = -(-self.size // 32)
        window = (self.frames // self.pool_time, edge, edge)
        x = sliding_average(x, window, type(self).__name__)  # b t' h' w' c in float32
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(self.num_classes, name="classifier")(x)
        return x.mean((1, 2, 3))


# Table 1 of arXiv:1812.03982 (Slow) and of arXiv:1711.07971 (I3D, C2D); the temporal
# kernels as in SlowFast's configs SLOW_8x8_R50 and I3D_8x8_R50. SLOW_4x16 is SLOW_8x8
# at half the frames.
VARIANTS: dict[str, dict[str, Any]] = {
    "slow_r50": {"kernel_times": ((1,), (1,), (3,), (3,))},
    "slow_r50_4x16": {"kernel_times": ((1,), (1,), (3,), (3,))},
    "i3d_r50": {
        "kernel_times": ((3,), (3, 1), (3, 1), (1, 3)),
        "stem_time": 5,
        "pool_time": 2,
    },
    "c2d_r50": {"kernel_times": ((1,), (1,), (1,), (1,)), "pool_time": 2},
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
