"""Multiscale vision transformers: MViT and MViTv2.

Attention pools its queries, keys and values by strided convolutions. From one stage to
the next the channels and the heads double while the pooling of queries halves height
and width; time is never pooled after the patches are cut. MViT (Fan et al.,
arXiv:2104.11227) adds embeddings of place and time to every token. MViTv2 (Li et al.,
arXiv:2112.01526) adds relative positions to the scores instead, and the pooled queries
to what they attend to.

>>> import jax, jax.numpy as jnp
>>> fields = VARIANTS["mvit_v2_s"] | {"depths": (1, 1), "width": 8}
>>> model = MViT(num_classes=5, frames=4, size=32, **fields)
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

from leaps_jax.kernels.pooling import max_pool
from leaps_jax.models.layers import (
    LayerNorm,
    Mlp,
    Size3,
    truncated_normal,
    xavier_uniform,
)
from leaps_jax.models.multiscale import (
    PoolingAttention,
    SeparablePosition,
    key_stride,
    over_grid,
    patch_embedding,
    patch_grid,
    pooled,
)


class Block(nn.Module):
    """Attention, then an MLP, each added to its input.

    Where the channels double, a matrix doubles those of the input too, and it sees them
    normalised. Where queries are pooled, the input is max-pooled alike.

    Attributes:
      attention: a `PoolingAttention` without its name.
      width: channels of what comes out.
      grid: of the tokens that come in.
      stride: of the pooling of the input.
      dtype: compute type, None for float32.
    """

    attention: Callable[..., nn.Module]
    width: int
    grid: Size3
    stride: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def widened(x: jax.Array, normed: jax.Array, width: int) -> jax.Array:
            if x.shape[-1] == width:
                return x
            return nn.Dense(
                width, dtype=self.dtype, kernel_init=xavier_uniform, name="widen"
            )(normed)

        steps, stride = self.grid[0], (1, self.stride, self.stride)
        norm = functools.partial(LayerNorm, time_axis=1, time_steps=steps)
        x, y = norm(name="norm").with_residual(x)
        attended = self.attention(name="attention")(y)
        x = widened(x, y, attended.shape[-1])
        if self.stride > 1:
            pool = functools.partial(
                max_pool, window=(1, 3, 3), stride=stride, padding=(0, 1, 1)
            )
            x = over_grid(pool, x, self.grid, class_tokens=1)
        x += attended
        x, y = norm(name="mlp_norm").with_residual(x)
        mlp = Mlp(4 * x.shape[-1], self.width, dtype=self.dtype, name="mlp")
        return widened(x, y, self.width) + mlp(y)


class MViT(nn.Module):
    """A multiscale transformer classifier: MViT and MViTv2.

    Attributes:
      num_classes: logits.
      frames: of the clips it is made for. With `size` it sets the tables of positions,
        which are resized for others by linear interpolation.
      size: height and width it is made for, in pixels.
      depths: blocks of every stage.
      width: channels of the first stage, and of every head.
      relative: positions are added to scores by their distance, not to tokens.
      residual: pooled queries are added to what they attend to.
      pool_queries: pool them in every block, not only where a stage begins.
      widen_early: attention doubles the channels in the first block of a stage; else
        the MLP of the block before it does.
      pool_epsilon: of the norms after pooling.
      dropout: rate before the classifier, in training.
      dtype: compute type of matrix products, None for float32; parameters are float32.
      remat: recompute each block in the backward pass instead of keeping it.
    """

    num_classes: int = 400
    frames: int = 16
    size: int = 224
    depths: tuple[int, ...] = (1, 2, 11, 2)
    width: int = 96
    relative: bool = True
    residual: bool = True
    pool_queries: bool = True
    widen_early: bool = True
    pool_epsilon: float = 1e-6
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
        class_token = self.param("class_token", truncated_normal, (self.width,))
        if not self.relative:
            position = self.param("class_position", truncated_normal, (self.width,))
            class_token = class_token + position
            x = SeparablePosition(table_grid, name="position")(x)
        class_token = class_token.astype(x.dtype)
        class_token = jnp.broadcast_to(class_token, (len(x), 1, self.width))
        x = jnp.concatenate([class_token, x.reshape(len(x), -1, self.width)], axis=1)

        stages = [s for s, depth in enumerate(self.depths) for _ in range(depth)]
        block = nn.remat(Block) if self.remat else Block
        for i, stage in enumerate(stages):
            begins = stage > stages[max(i - 1, 0)]
            stride = 2 if begins else 1
            after = stage if self.widen_early else stages[min(i + 1, len(stages) - 1)]
            attention = functools.partial(
                PoolingAttention,
                heads=2**stage,
                head_width=self.width,
                grid=grid,
                query_stride=stride if self.pool_queries or begins else None,
                key_stride=key_stride(stage),
                table_grid=table_grid if self.relative else None,
                residual=self.residual,
                epsilon=self.pool_epsilon,
                dtype=self.dtype,
            )
            width = self.width * 2**after
            x = block(attention, width, grid, stride, self.dtype, name=f"block{i}")(x)
            grid, table_grid = pooled(grid, stride), pooled(table_grid, stride)
        x = LayerNorm(time_axis=1, time_steps=grid[0], name="norm")(x)
        x = x[:, 0].astype(jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(
            self.num_classes, kernel_init=truncated_normal, name="classifier"
        )(x)


# MViT-B: table 3 of arXiv:2104.11227. MViTv2-S and -B: table 1 of arXiv:2112.01526 and
# SlowFast's configurations.
VARIANTS: dict[str, dict[str, Any]] = {
    "mvit_v1_b": {
        "depths": (1, 2, 11, 2),
        "width": 96,
        "relative": False,
        "residual": False,
        "pool_queries": False,
        "widen_early": False,
    },
    "mvit_v2_s": {
        "depths": (1, 2, 11, 2),
        "width": 96,
        "relative": True,
        "residual": True,
        "pool_queries": True,
        "widen_early": True,
    },
    "mvit_v2_b": {
        "depths": (2, 3, 16, 3),
        "width": 96,
        "relative": True,
        "residual": True,
        "pool_queries": True,
        "widen_early": True,
    },
}
