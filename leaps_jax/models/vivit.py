"""ViViT, a video vision transformer (Arnab et al., arXiv:2103.15691).

Two of the paper's models. *Joint* (model 1): every token attends to every other in
space and time. *Factorised encoder* (model 2): a spatial encoder sees each time step
by itself and a temporal encoder sees the class tokens of all steps; here time keeps an
axis of its own, (b, t, n, c), and is never folded into the batch.

>>> import jax, jax.numpy as jnp
>>> fields = VARIANTS["vivit_small"]
>>> model = ViViT(num_classes=5, frames=4, size=32, **fields)
>>> video = jnp.zeros((1, 4, 32, 32, 3))
>>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
>>> logits.shape
(1, 5)
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from leaps_jax.kernels.attention import attend
from leaps_jax.kernels.padding import pad_tokens
from leaps_jax.models.layers import (
    ConvStem,
    LayerNorm,
    Mlp,
    Size3,
    first_tokens,
    patch_embedding,
    truncated_normal,
    xavier_uniform,
)


class Attention(nn.Module):
    """Multi-head self-attention along the last but one axis."""

    heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, length: int) -> jax.Array:
        """Maps (..., n, c) to the same shape; tokens after `length` are padding."""

        def dense(name: str, x: jax.Array) -> jax.Array:
            return nn.Dense(
                x.shape[-1], dtype=self.dtype, kernel_init=xavier_uniform, name=name
            )(x)

        shape = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)  # ... n heads d
        q, k, v = (dense(n, x).reshape(shape) for n in ("query", "key", "value"))
        return dense("proj", attend(q, k, v, length=length).reshape(x.shape))


class Block(nn.Module):
    """Attention, then an MLP, each added to its input.

    Maps tokens (b, 1 + steps * n, c) or, where steps is None, (b, t, 1 + n, c). Those
    after the first `length` are padding.
    """

    length: int
    heads: int
    hidden: int
    steps: int | None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(LayerNorm, time_axis=1, time_steps=self.steps)
        real = first_tokens(self.length, x.shape)
        x, y = norm(name="norm").with_residual(x, real)
        x = x + Attention(self.heads, self.dtype, name="attention")(y, self.length)
        x, y = norm(name="mlp_norm").with_residual(x, real)
        return x + Mlp(self.hidden, tanh_gelu=True, dtype=self.dtype, name="mlp")(y)


class Encoder(nn.Module):
    """A transformer over the tokens of a grid, read out at its class token.

    Attributes:
      grid: of the position embeddings. They are resized for another grid, by linear
        interpolation along each axis.
      depth: blocks.
      heads: of attention.
      hidden: channels inside the MLPs.
      dtype: compute type.
      remat: recompute each block in the backward pass.
    """

    grid: tuple[int, ...]
    depth: int
    heads: int
    hidden: int
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens (b, *grid, c) to (b, c), or (b, t, *grid, c) to (b, t, c)."""
        leading = tokens.shape[: -1 - len(self.grid)]
        *grid, c = tokens.shape[len(leading) :]
        class_token = self.param("class_token", truncated_normal, (1, 1, c))
        shape = (1, 1 + math.prod(self.grid), c)
        position = self.param("position_embedding", truncated_normal, shape)

        class_token = (class_token + position[:, :1]).astype(tokens.dtype)
        class_token = jnp.broadcast_to(class_token, (*leading, 1, c))
        position = position[:, 1:].reshape(*self.grid, c)
        if tuple(grid) != tuple(self.grid):
            position = jax.image.resize(position, (*grid, c), "linear", antialias=False)
        tokens = (tokens + position.astype(tokens.dtype)).reshape(*leading, -1, c)
        x = jnp.concatenate([class_token, tokens], axis=-2)
        length = x.shape[-2]
        x = pad_tokens(x, self.dtype)

        # time is an axis by itself, or the first of the grid
        steps = None if len(leading) == 2 else grid[0]
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            sizes = (length, self.heads, self.hidden, steps, self.dtype)
            x = block(*sizes, name=f"block{i}")(x)
        norm = LayerNorm(time_axis=1, time_steps=steps, name="norm")
        return norm(x, first_tokens(length, x.shape))[..., 0, :]


class ViViT(nn.Module):
    """A transformer classifier over tubelets.

    Attributes:
      num_classes: logits.
      frames: of the clips it is made for. With `size` it sets the grid of position
        embeddings, which are resized for others by linear interpolation.
      size: height and width it is made for, in pixels.
      tubelet: frames, height and width of what becomes one token.
      depth: blocks; of the spatial encoder in a factorised one.
      temporal_depth: blocks of the temporal encoder; 0 for joint attention to space
        and time.
      width: channels of a token.
      heads: of attention.
      hidden: channels inside the MLPs.
      stem: widths of a `ConvStem`; there is none in the paper.
      dropout: rate before the classifier, in training.
      dtype: compute type of matrix products, None for float32; parameters are float32.
      remat: recompute each block in the backward pass instead of keeping it.
    """

    num_classes: int = 400
    frames: int = 32
    size: int = 224
    tubelet: Size3 = (2, 16, 16)
    depth: int = 12
    temporal_depth: int = 0
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    stem: tuple[int, ...] = ()
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, video: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (b, classes) in float32 of a normalised video (b, t, h, w, 3).

        Raises:
          ValueError: frames, height or width are no multiple of the tubelet's.
        """
        made_for = (self.frames, self.size, self.size)
        for clip in (made_for, video.shape[1:4]):
            if any(n % k or not n for n, k in zip(clip, self.tubelet, strict=True)):
                have, need = ("x".join(map(str, s)) for s in (clip, self.tubelet))
                raise ValueError(
                    f"clip of {have} (frames x height x width): ViViT cuts it into"
                    f" tubelets of {need}; use a multiple of each"
                )
        # the stem's convolutions do a part of the tubelet's shrinking
        i, j, k = self.tubelet
        done = 2 ** len(self.stem)
        x = ConvStem(self.stem, self.dtype, name="stem")(video)
        tubelet = (i, j // done, k // done)
        tokens = patch_embedding(
            self.width, tubelet, dtype=self.dtype, name="tubelet_embedding"
        )(x)  # b t h w c

        def encoder(name: str, grid: tuple[int, ...], depth: int) -> Encoder:
            sizes = (depth, self.heads, self.hidden, self.dtype, self.remat)
            return Encoder(grid, *sizes, name=name)

        t, h, w = (n // k for n, k in zip(made_for, self.tubelet, strict=True))
        if self.temporal_depth:
            x = encoder("spatial", (h, w), self.depth)(tokens)  # b t c
            x = encoder("temporal", (t,), self.temporal_depth)(x)
        else:
            x = encoder("encoder", (t, h, w), self.depth)(tokens)
        x = nn.Dropout(self.dropout, deterministic=not train)(x.astype(jnp.float32))
        return nn.Dense(
            self.num_classes, kernel_init=truncated_normal, name="classifier"
        )(x)


# Section 4.1 of arXiv:2103.15691: ViT-Base and -Large with tubelets of 2 x 16 x 16.
# Temporal blocks as in Scenic's configurations, 4 in Base and 24 in Large.
VARIANTS: dict[str, dict[str, Any]] = {
    "vivit_b_16x2": {
        "tubelet": (2, 16, 16),
        "depth": 12,
        "temporal_depth": 0,
        "width": 768,
        "heads": 12,
        "hidden": 3072,
    },
    "vivit_b_16x2_fe": {
        "tubelet": (2, 16, 16),
        "depth": 12,
        "temporal_depth": 4,
        "width": 768,
        "heads": 12,
        "hidden": 3072,
    },
    "vivit_l_16x2_fe": {
        "tubelet": (2, 16, 16),
        "depth": 24,
        "temporal_depth": 24,
        "width": 1024,
        "heads": 16,
        "hidden": 4096,
    },
    # this project's, to train from scratch: 8 x 7 x 7 tubelets of 16 frames at 112
    # pixels; its MLPs keep it under 2.9 M parameters
    "vivit_small": {
        "tubelet": (2, 16, 16),
        "depth": 4,
        "temporal_depth": 2,
        "width": 192,
        "heads": 3,
        "hidden": 704,
        "stem": (24, 48, 96),
    },
}
