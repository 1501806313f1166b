"""3D ResNets of 18 layers: R3D, MC3 and R(2+1)D (Tran et al., arXiv:1711.11248).

R3D convolves time and space together in every stage, MC3 ("mixed convolutions") in the
first and space alone later. R(2+1)D factorises every convolution into a spatial and a
temporal one, with as many parameters.

>>> import jax, jax.numpy as jnp
>>> model = ResNet18(num_classes=5, frames=4, size=32, **VARIANTS["mc3_18"])
>>> video = jnp.zeros((1, 4, 32, 32, 3))
>>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
>>> logits.shape
(1, 5)
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from leaps_jax.models.layers import BatchNorm, Conv, Size3


class Stem(nn.Module):
    """Convolution, norm and ReLU at half the height and width.

    Factorised, that convolution is spatial and a temporal one follows.
    """

    features: int
    factorised: bool
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        # 45 as published; the paper's formula (see `between`) would give 83
        features, time = (45, 1) if self.factorised else (self.features, 3)
        x = Conv(features, (time, 7, 7), (1, 2, 2), dtype=self.dtype, name="conv")(x)
        x = BatchNorm(not train, name="norm")(x, activation=nn.relu)
        if self.factorised:
            x = Conv(self.features, (3, 1, 1), dtype=self.dtype, name="conv_time")(x)
            x = BatchNorm(not train, name="norm_time")(x, activation=nn.relu)
        return x


def between(inputs: int, outputs: int) -> int:
    """Width between the halves of a factorised convolution, as in arXiv:1711.11248.

    It gives them as many parameters as a 3x3x3 convolution has.

    >>> between(64, 64), between(64, 128)
    (144, 230)
    """
    return 27 * inputs * outputs // (9 * inputs + 3 * outputs)


class SpaceThenTime(nn.Module):
    """A 1x3x3 and a 3x1x1 convolution, a norm and a ReLU between them.

    Each strides its own axes.
    """

    features: int
    between: int
    stride: Size3
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        dtype, (t, h, w) = self.dtype, self.stride
        x = Conv(self.between, (1, 3, 3), (1, h, w), dtype=dtype, name="conv_space")(x)
        x = BatchNorm(not train, name="norm")(x, activation=nn.relu)
        return Conv(self.features, (3, 1, 1), (t, 1, 1), dtype=dtype, name="conv_time")(
            x
        )


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    features: int
    kernel_time: int
    stride: Size3
    factorised: bool
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        n, dtype = self.features, self.dtype
        # of both convolutions, though the second has other inputs
        width = between(x.shape[-1], n)

        def convolved(x: jax.Array, stride: Size3, name: str) -> jax.Array:
            if self.factorised:
                return SpaceThenTime(n, width, stride, dtype, name=name)(x, train=train)
            kernel = (self.kernel_time, 3, 3)
            return Conv(n, kernel, stride, dtype=dtype, name=name)(x)

        y = convolved(x, self.stride, "conv_a")
        y = BatchNorm(not train, name="norm_a")(y, activation=nn.relu)
        y = convolved(y, (1, 1, 1), "conv_b")
        # a scale of zero makes the block the identity when training starts
        zeros = nn.initializers.zeros_init()
        norm = BatchNorm(not train, scale_init=zeros, name="norm_b")
        if x.shape[-1] == n and self.stride == (1, 1, 1):
            return norm(y, activation=nn.relu, residual=x)
        y = norm(y)
        x = Conv(n, (1, 1, 1), self.stride, dtype=dtype, name="shortcut_conv")(x)
        return BatchNorm(not train, name="shortcut_norm")(
            x, activation=nn.relu, residual=y
        )


class Stage(nn.Module):
    """Blocks of one width; the first strides."""

    depth: int
    features: int
    kernel_time: int
    stride: Size3
    factorised: bool
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        # 2: `train`, counted with `self`
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for i in range(self.depth):
            x = block(
                self.features,
                self.kernel_time,
                self.stride if i == 0 else (1, 1, 1),
                self.factorised,
                self.dtype,
                name=f"block{i}",
            )(x, train)
        return x


class ResNet18(nn.Module):
    """A 3D ResNet classifier of basic blocks.

    The head averages over all positions, so that clips of any length and size do.

    Attributes:
      num_classes: logits.
      frames: of the clips it is made for.
      size: height and width it is made for, in pixels.
      depths: blocks per stage.
      features: width per stage; the first is the stem's too.
      kernel_times: per stage, the temporal kernel of its convolutions. Each stage but
        the first halves height and width, and time too if it convolves it.
      factorised: every convolution of time and space is a spatial and a temporal one.
      dropout: rate before the classifier, in training.
      dtype: compute type of convolutions, None for float32; parameters are float32.
      remat: recompute each block in the backward pass instead of keeping it.
    """

    num_classes: int = 400
    frames: int = 16
    size: int = 112
    depths: tuple[int, ...] = (2, 2, 2, 2)
    features: tuple[int, ...] = (64, 128, 256, 512)
    kernel_times: tuple[int, ...] = (3, 3, 3, 3)
    factorised: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, video: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (b, classes) in float32 of a normalised video (b, t, h, w, 3)."""
        x = Stem(self.features[0], self.factorised, self.dtype, name="stem")(
            video, train=train
        )
        stages = zip(self.depths, self.features, self.kernel_times, strict=True)
        for i, (depth, features, kernel_time) in enumerate(stages):
            halved = (2 if kernel_time > 1 else 1, 2, 2)
            x = Stage(
                depth,
                features,
                kernel_time,
                (1, 1, 1) if i == 0 else halved,
                self.factorised,
                self.dtype,
                self.remat,
                name=f"stage{i + 1}",
            )(x, train=train)
        x = x.mean((1, 2, 3), dtype=jnp.float32)  # b c
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="classifier")(x)


# Section 3 and table 1 of arXiv:1711.11248, as torchvision has them.
VARIANTS: dict[str, dict[str, Any]] = {
    "r3d_18": {"kernel_times": (3, 3, 3, 3), "factorised": False},
    "mc3_18": {"kernel_times": (3, 1, 1, 1), "factorised": False},
    "r2plus1d_18": {"kernel_times": (3, 3, 3, 3), "factorised": True},
}
