"""UniFormerV2, an image transformer with global blocks (Li et al., arXiv:2211.09552).

The blocks of CLIP (Radford et al., arXiv:2103.00020) see every frame by itself. After
each of the last few a *global block* asks the tokens of all frames for a summary of the
video, a single token that goes from one global block to the next. The classifier sees
the summary and the mean of the frames' class tokens, weighed per channel. Time keeps an
axis of its own, (b, t, 1 + n, c), and no embedding: clips have any number of frames.

The weights published for Kinetics-400 have none of the paper's local blocks, nor has
this network.

>>> import jax, jax.numpy as jnp
>>> fields = VARIANTS["uniformer_v2_b"] | {"depth": 2, "global_depth": 1}
>>> model = UniFormerV2(num_classes=5, frames=2, size=32, **fields)
>>> video = jnp.zeros((1, 2, 32, 32, 3))
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

from leaps_jax.kernels.padding import pad_tokens
from leaps_jax.models.layers import (
    Attention,
    DepthwiseConv,
    LayerNorm,
    first_tokens,
    patch_embedding,
    truncated_normal,
    xavier_uniform,
)

Norm = functools.partial(LayerNorm, epsilon=1e-5)


class Mlp(nn.Module):
    """Two layers, four times as wide between them, with CLIP's fast form of a GELU."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        x = nn.Dense(4 * c, dtype=self.dtype, kernel_init=xavier_uniform, name="fc1")(x)
        x = x * nn.sigmoid(1.702 * x)
        return nn.Dense(c, dtype=self.dtype, kernel_init=xavier_uniform, name="fc2")(x)


class Block(nn.Module):
    """Attention within every frame, then an MLP, each added to its input."""

    length: int
    heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens (b, t, length + padding, c) to the same shape."""
        real = first_tokens(self.length, x.shape)
        x, y = Norm(time_axis=1, name="norm").with_residual(x, real)
        attention = Attention(self.heads, self.dtype, name="attention")
        x = x + attention(y, length=self.length)
        x, y = Norm(time_axis=1, name="mlp_norm").with_residual(x, real)
        return x + Mlp(self.dtype, name="mlp")(y)


class GlobalBlock(nn.Module):
    """Attention of the summary to all frames, then an MLP, each added to the summary.

    A depthwise convolution tells the patches their places in space and time. What it
    adds stays in this block: the next block of frames does not see it.
    """

    heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, summary: jax.Array, x: jax.Array) -> jax.Array:
        """Maps a summary (b, 1, c) to the same shape, given tokens (b, t, 1 + n, c)."""
        b, t, n, c = x.shape
        edge = math.isqrt(n - 1)
        patches = x[:, :, 1:].reshape(b, t, edge, edge, c)
        patches += DepthwiseConv(
            (3, 3, 3), dtype=self.dtype, use_bias=True, name="position"
        )(patches)
        x = jnp.concatenate([x[:, :, :1], patches.reshape(b, t, -1, c)], axis=2)

        y = Norm(name="summary_norm")(summary)
        x = Norm(time_axis=1, name="norm")(x).reshape(b, t * n, c)
        summary = summary + Attention(self.heads, self.dtype, name="attention")(y, x)
        y = Norm(name="mlp_norm")(summary)
        return summary + Mlp(self.dtype, name="mlp")(y)


class UniFormerV2(nn.Module):
    """An image transformer with global blocks, as a classifier of videos.

    Attributes:
      num_classes: logits.
      frames: of the clips it is made for. No weight depends on it.
      size: height and width of the clips, in pixels; sets the position embeddings.
      patch: height and width of a patch, in pixels.
      depth: blocks.
      global_depth: blocks, the last ones, that a global block follows.
      width: channels of a token.
      heads: of attention.
      dropout: rate before the classifier, in training.
      dtype: compute type of matrix products, None for float32; parameters are float32.
      remat: recompute each block in the backward pass instead of keeping it.
    """

    num_classes: int = 400
    frames: int = 8
    size: int = 224
    patch: int = 16
    depth: int = 12
    global_depth: int = 4
    width: int = 768
    heads: int = 12
    dropout: float = 0.5
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, video: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (b, classes) in float32 of a normalised video (b, t, h, w, 3).

        Raises:
          ValueError: the size is no multiple of the patch, or the video is of another.
        """
        b, t, h, w, _ = video.shape
        patch, size, c = self.patch, self.size, self.width
        if size % patch or not size:
            raise ValueError(
                f"size={size}: UniFormerV2 cuts frames into patches of {patch} pixels;"
                f" use a multiple of {patch}"
            )
        if (h, w) != (size, size):
            raise ValueError(
                f"frames of {h}x{w}: this UniFormerV2 has position embeddings for"
                f" {size}x{size}, which are not resized; use size={size}"
            )
        embedding = patch_embedding(
            c,
            (1, patch, patch),
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )
        x = embedding(video).reshape(b, t, -1, c)
        class_token = self.param("class_token", truncated_normal, (c,))
        shape = (1 + x.shape[2], c)
        position = self.param("position_embedding", truncated_normal, shape)
        summary = self.param("summary_token", truncated_normal, (1, 1, c))
        balance = self.param("balance", nn.initializers.zeros_init(), (c,))

        class_token = jnp.broadcast_to(class_token.astype(x.dtype), (b, t, 1, c))
        x = jnp.concatenate([class_token, x], axis=2) + position.astype(x.dtype)
        length = x.shape[2]
        x = pad_tokens(Norm(time_axis=1, name="embedding_norm")(x), self.dtype)
        summary = jnp.broadcast_to(summary.astype(x.dtype), (b, 1, c))

        block, global_block = Block, GlobalBlock
        if self.remat:
            block, global_block = nn.remat(Block), nn.remat(GlobalBlock)
        first = max(self.depth - self.global_depth, 0)
        for i in range(self.depth):
            x = block(length, self.heads, self.dtype, name=f"block{i}")(x)
            if i >= first:
                name = f"global{i - first}"
                summary = global_block(self.heads, self.dtype, name=name)(
                    summary, x[:, :, :length]
                )

        share = nn.sigmoid(balance)
        frames = jnp.mean(x[:, :, 0], axis=1, dtype=jnp.float32)  # b c
        x = (1 - share) * summary[:, 0] + share * frames
        x = Norm(name="norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(
            self.num_classes, kernel_init=truncated_normal, name="classifier"
        )(x)


# Sections 3 and 4.1 of arXiv:2211.09552: CLIP's ViT-B/16 and ViT-L/14 with global
# blocks after their last four blocks.
VARIANTS: dict[str, dict[str, Any]] = {
    "uniformer_v2_b": {"patch": 16, "depth": 12, "width": 768, "heads": 12},
    "uniformer_v2_l": {"patch": 14, "depth": 24, "width": 1024, "heads": 16},
    "uniformer_v2_l_16f": {"patch": 14, "depth": 24, "width": 1024, "heads": 16},
}
