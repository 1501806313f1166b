"""Video Swin, a transformer of shifted windows (Liu et al., arXiv:2106.13230).

Attention stays within windows of space and time; every other block shifts them by half
a window, so that neighbours meet. It is the Swin transformer of images (Liu et al.,
arXiv:2103.14030) with time as a third axis. Tokens are always (b, t, h, w, c).

>>> import jax, jax.numpy as jnp
>>> fields = {**VARIANTS["swin3d_t"], "depths": (2, 1, 1, 1)}
>>> model = Swin(num_classes=5, frames=4, size=32, **fields)
>>> video = jnp.zeros((1, 4, 32, 32, 3))
>>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
>>> logits.shape
(1, 5)
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.kernels.window_attention import attend
from leaps_jax.models.layers import (
    LayerNorm,
    Mlp,
    QueriesKeysValues,
    Size3,
    patch_embedding,
    truncated_normal,
    xavier_uniform,
)

norm = functools.partial(LayerNorm, epsilon=1e-5, time_axis=1)


def pad_to_multiple(x: jax.Array, multiple: Sequence[int]) -> jax.Array:
    """Pads t, h and w of (b, t, h, w, c) with zeros, each to a multiple of a number."""
    margins = [(0, -n % k) for n, k in zip(x.shape[1:4], multiple, strict=True)]
    return jnp.pad(x, [(0, 0), *margins, (0, 0)])


def relative_positions(window: Sequence[int]) -> jax.Array:
    """Where the bias of (query, key) is in a table over all offsets, (tokens, tokens).

    >>> relative_positions((1, 1, 3))
    Array([[2, 1, 0],
           [3, 2, 1],
           [4, 3, 2]], dtype=int32)
    """
    table = tuple(2 * k - 1 for k in window)
    tokens = tuple(np.indices(window).reshape(3, -1))
    # on the device: as constants these would be most of the program
    places = jnp.asarray(np.ravel_multi_index(tokens, table), jnp.int32)
    # an offset of zero is in the middle of the table
    return places[:, None] - places + math.prod(table) // 2


class WindowAttention(nn.Module):
    """Multi-head self-attention within the windows of (b, t, h, w, c).

    Attributes:
      heads: of attention.
      window: its size in tokens. An axis that is no longer than it is one window.
      shift: tokens by which windows are shifted along the axes that have several.
      dtype: compute type.
    """

    heads: int
    window: Size3
    shift: Size3
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, t, h, w, c = x.shape
        axes = list(zip((t, h, w), self.window, self.shift, strict=True))
        window = tuple(min(n, k) for n, k, _ in axes)
        shift = tuple(s if n > k else 0 for n, k, s in axes)
        dense = functools.partial(
            nn.Dense, dtype=self.dtype, kernel_init=xavier_uniform
        )

        x = pad_to_multiple(x, window)
        q, k, v = QueriesKeysValues(self.heads, self.dtype, name="qkv")(x, x)
        x = attend(q, k, v, self._bias(window), window, shift).reshape(x.shape)
        return dense(c, name="proj")(x[:, :t, :h, :w])

    def _bias(self, window: Sequence[int]) -> jax.Array:
        """The relative position bias, (heads, n, n)."""
        offsets = math.prod(2 * k - 1 for k in self.window)
        table = self.param(
            "relative_position_bias", truncated_normal, (offsets, self.heads)
        )
        # A window that is cut to the features takes the first rows and columns of the
        # whole window's. Where height or width are cut these are not its offsets, but
        # so were the published weights made to run.
        n = math.prod(window)
        positions = relative_positions(self.window)[:n, :n]
        # weights may be numpy's, which positions that are traced cannot index
        return jnp.asarray(table)[positions].transpose(2, 0, 1)


class Block(nn.Module):
    """Attention within windows, then an MLP, each added to its input."""

    heads: int
    window: Size3
    shift: Size3
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, y = norm(name="norm").with_residual(x)
        x = x + WindowAttention(
            self.heads, self.window, self.shift, self.dtype, name="attention"
        )(y)
        x, y = norm(name="mlp_norm").with_residual(x)
        return x + Mlp(4 * x.shape[-1], dtype=self.dtype, name="mlp")(y)


class PatchMerging(nn.Module):
    """Joins every 2 x 2 tokens of a frame into one of twice the channels."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = pad_to_multiple(x, (1, 2, 2))
        b, t, h, w, c = x.shape
        x = x.reshape(b, t, h // 2, 2, w // 2, 2, c)
        # upstream's order: rows within columns
        x = x.transpose(0, 1, 2, 4, 5, 3, 6).reshape(b, t, h // 2, w // 2, 4 * c)
        return nn.Dense(
            2 * c,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=xavier_uniform,
            name="reduction",
        )(norm(name="norm")(x))


class Stage(nn.Module):
    """Blocks of one width; the windows of every other one are shifted."""

    depth: int
    heads: int
    window: Size3
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        t, h, w = self.window
        shifts = ((0, 0, 0), (t // 2, h // 2, w // 2))
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            x = block(
                self.heads, self.window, shifts[i % 2], self.dtype, name=f"block{i}"
            )(x)
        return x


class Swin(nn.Module):
    """A shifted-window transformer classifier.

    It has no position embeddings and takes clips of any length and size: what is no
    multiple of a tubelet or a window is padded with zeros.

    Attributes:
      num_classes: logits.
      frames: of the clips it is made for; no weight depends on it.
      size: height and width it is made for, in pixels; likewise.
      tubelet: frames, height and width of what becomes one token.
      depths: blocks per stage.
      width: channels of a token in the first stage; twice as many in each next.
      heads: of attention, per stage.
      window: of attention, in tokens.
      dropout: rate before the classifier, in training.
      dtype: compute type of matrix products, None for float32; parameters are float32.
      remat: recompute each block in the backward pass instead of keeping it.
    """

    num_classes: int = 400
    frames: int = 32
    size: int = 224
    tubelet: Size3 = (2, 4, 4)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    width: int = 96
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: Size3 = (8, 7, 7)
    dropout: float = 0.5
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, video: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (b, classes) in float32 of a normalised video (b, t, h, w, 3)."""
        x = patch_embedding(
            self.width, self.tubelet, dtype=self.dtype, name="patch_embedding"
        )(pad_to_multiple(video, self.tubelet))
        x = norm(name="patch_norm")(x)
        for i, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if i > 0:
                x = PatchMerging(self.dtype, name=f"merging{i}")(x)
            x = Stage(
                depth, heads, self.window, self.dtype, self.remat, name=f"stage{i + 1}"
            )(x)
        x = norm(name="norm")(x).mean((1, 2, 3), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(
            self.num_classes, kernel_init=truncated_normal, name="classifier"
        )(x)


# Section 3.3 of arXiv:2106.13230; heads are 32 channels wide.
VARIANTS: dict[str, dict[str, Any]] = {
    "swin3d_t": {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "swin3d_s": {"width": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "swin3d_b": {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
}
