"""The reversible multiscale vision transformer (Mangalam et al., arXiv:2302.04869).

An MViT without a class token whose blocks carry two streams. Attention of one updates
the other, an MLP of that updates the first, so that both can be had back from what
comes out; only between stages, where tokens are pooled, this is not so.

>>> import jax, jax.numpy as jnp
>>> fields = VARIANTS["rev_mvit_b"] | {"depths": (1, 1), "width": 8}
>>> model = ReversibleMViT(num_classes=5, frames=4, size=32, **fields)
>>> video = jnp.zeros((1, 4, 32, 32, 3))
>>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
>>> logits.shape
(1, 5)
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from leaps_jax.models.layers import LayerNorm, Mlp, truncated_normal, xavier_uniform
from leaps_jax.models.multiscale import (
    PoolingAttention,
    SeparablePosition,
    key_stride,
    patch_embedding,
    patch_grid,
    pooled,
)

Norm = functools.partial(LayerNorm, time_axis=1, class_tokens=0)


class ReversibleBlock(nn.Module):
    """Attention of one stream updates the other, and an MLP of that the first.

    Attributes:
      attention: a `PoolingAttention` without its name.
      steps: of time.
      dtype: compute type, None for float32.
    """

    attention: Callable[..., nn.Module]
    steps: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = Norm(time_steps=self.steps, name="norm")(b)
        a += self.attention(name="attention")(y)
        y = Norm(time_steps=self.steps, name="mlp_norm")(a)
        return a, b + Mlp(4 * a.shape[-1], dtype=self.dtype, name="mlp")(y)


class Transition(nn.Module):
    """An ordinary block between two stages: both streams start again from its output.

    It takes their mean. A matrix doubles the channels of what attention is added to,
    and the pooling of the queries, with the same weights, halves its height and width.

    Attributes:
      attention: a `PoolingAttention` without its name.
      steps: of time.
      dtype: compute type, None for float32.
    """

    attention: Callable[..., nn.Module]
    steps: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = (a + b) / 2
        attention = self.attention(name="attention")
        y = nn.Dense(
            2 * x.shape[-1], dtype=self.dtype, kernel_init=xavier_uniform, name="widen"
        )(x)
        y = attention.pool_q(y.reshape(*x.shape[:2], attention.heads, -1))
        y = y.reshape(*y.shape[:2], -1)
        x = y + attention(Norm(time_steps=self.steps, name="norm")(x))
        y = Norm(time_steps=self.steps, name="mlp_norm")(x)
        x += Mlp(4 * x.shape[-1], dtype=self.dtype, name="mlp")(y)
        return x, x


class ReversibleMViT(nn.Module):
    """A multiscale transformer classifier of two streams, without a class token.

    Attributes:
      num_classes: logits.
      frames: of the clips it is made for. With `size` it sets the tables of positions,
        which are resized for others by linear interpolation.
      size: height and width it is made for, in pixels.
      depths: blocks of every stage; the first of all but the first stage is a
        `Transition`.
      width: channels of a stream in the first stage, and of every head.
      dropout: rate before the classifier, in training.
      dtype: compute type of matrix products, None for float32; parameters are float32.
      remat: recompute each block in the backward pass instead of keeping it.
    """

    num_classes: int = 400
    frames: int = 16
    size: int = 224
    depths: tuple[int, ...] = (1, 2, 11, 2)
    width: int = 96
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, video: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (b, classes) in float32 of a normalised video (b, t, h, w, 3).

        Raises:
          ValueError: frames, height or width are no multiple of the stride of patches.
        """
        table_grid = patch_grid(self.frames, self.size, self.size)
        grid = patch_grid(*video.shape[1:4])
        embedding = patch_embedding(self.width, self.dtype)
        x = embedding(video)  # b t h w c
        x = SeparablePosition(table_grid, name="position")(x)
        x = x.reshape(len(x), -1, self.width)

        streams = (x, x)
        stages = [s for s, depth in enumerate(self.depths) for _ in range(depth)]
        for i, stage in enumerate(stages):
            begins = stage > stages[max(i - 1, 0)]
            block: Any = Transition if begins else ReversibleBlock
            attention = functools.partial(
                PoolingAttention,
                heads=2**stage,
                head_width=self.width,
                grid=grid,
                query_stride=2 if begins else None,
                key_stride=key_stride(stage),
                class_tokens=0,
                qkv_bias=False,
                dtype=self.dtype,
            )
            block = nn.remat(block) if self.remat else block
            streams = block(attention, grid[0], self.dtype, name=f"block{i}")(*streams)
            grid = pooled(grid, 2 if begins else 1)
        x = jnp.concatenate(streams, axis=-1)
        x = Norm(time_steps=grid[0], name="norm")(x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(
            self.num_classes, kernel_init=truncated_normal, name="classifier"
        )(x)


# SlowFast's configuration rev_mvit_b_16x4_conv.
VARIANTS: dict[str, dict[str, Any]] = {
    "rev_mvit_b": {"depths": (1, 2, 11, 2), "width": 96},
}
