"""TimeSformer with divided space-time attention (Bertasius et al., arXiv:2102.05095).

Tokens stay (b, t, 1 + n, c): temporal attention runs along t, spatial attention along
the next axis, and nothing is ever folded into the batch. Every frame has a copy of the
class token from beginning to end, so that nothing is cut out or put together, either;
a norm's tap shows what the published network has there.

>>> import jax, jax.numpy as jnp
>>> fields = VARIANTS["timesformer_small"]
>>> model = TimeSformer(num_classes=5, frames=4, size=32, **fields)
>>> video = jnp.zeros((1, 4, 32, 32, 3))
>>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
>>> logits.shape
(1, 5)
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.kernels.attention import attend_over_time
from leaps_jax.kernels.linear import Linear, two_layers
from leaps_jax.kernels.padding import pad_tokens
from leaps_jax.models.layers import (
    Attention,
    ConvStem,
    LayerNorm,
    Mlp,
    Selection,
    first_tokens,
    patch_embedding,
    truncated_normal,
    xavier_uniform,
)


class LinearParameters(nn.Module):
    """The parameters of an `nn.Dense` of as many channels as it is given."""

    @nn.compact
    def __call__(self, c: int) -> Linear:
        kernel = self.param("kernel", xavier_uniform, (c, c))
        return kernel, self.param("bias", nn.initializers.zeros_init(), (c,))


class TemporalAttention(nn.Module):
    """Multi-head self-attention of every place by itself, along time."""

    heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, output: Linear) -> jax.Array:
        """Maps (b, t, n, c) to the same shape; `output` follows the projection."""
        c = x.shape[-1]
        qkv = nn.Dense(3 * c, dtype=self.dtype, kernel_init=xavier_uniform, name="qkv")(
            x
        )
        qkv = qkv.reshape(*x.shape[:-1], 3, self.heads, -1)
        y = attend_over_time(qkv).reshape(x.shape)
        return two_layers(y, LinearParameters(name="proj")(c), output, self.dtype)


class Block(nn.Module):
    """Attention over time, then over space, then an MLP, each added to its input.

    Attributes:
      places: patches of a frame.
      heads: of attention.
      hidden: channels inside the MLP.
      dtype: compute type.
    """

    places: int
    heads: int
    hidden: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, t, 1 + places + padding, c) to the same shape."""
        c, length = x.shape[-1], 1 + self.places
        _, token = np.indices(x.shape[1:3])
        is_class = token[:, :, None] == 0
        patches = Selection(lambda x: x[:, :, 1:length], (token > 0) & (token < length))
        norm = LayerNorm(time_axis=1, name="temporal_norm")
        x, y = norm.with_residual(x, patches)
        attention = TemporalAttention(self.heads, self.dtype, name="temporal_attention")
        y = attention(y, LinearParameters(name="temporal_dense")(c))
        x = x + jnp.where(is_class, 0, y)  # class tokens are outside of time

        norm = LayerNorm(time_axis=1, name="norm")
        x, y = norm.with_residual(x, first_tokens(length, x.shape))
        y = Attention(self.heads, self.dtype, name="attention")(y, length=length)
        # the class token is the mean of its copies, which attended to one frame each
        mean = y[:, :, :1].mean(1, keepdims=True, dtype=jnp.float32).astype(y.dtype)
        mean = jnp.broadcast_to(mean, (*x.shape[:2], 1, c))
        # padded, since its gradient is then a slice and no sum over all tokens
        mean = jnp.pad(mean, [(0, 0), (0, 0), (0, x.shape[2] - 1), (0, 0)])
        x = x + jnp.where(is_class, 0, y) + mean

        norm = LayerNorm(name="mlp_norm")
        x, y = norm.with_residual(x, sequence(self.places, x.shape))
        return x + Mlp(self.hidden, dtype=self.dtype, name="mlp")(y)


def sequence(places: int, shape: tuple[int, ...]) -> Selection:
    """A class token and all patches, (b, 1 + t places, c), of tokens (b, t, n, c)."""

    def select(x: jax.Array) -> jax.Array:
        patches = x[:, :, 1 : 1 + places]
        patches = patches.reshape(x.shape[0], -1, x.shape[-1])
        # XLA for GPUs would make a copy of a concatenation before it takes its mean
        class_token = jnp.pad(x[:, 0, :1], [(0, 0), (0, patches.shape[1]), (0, 0)])
        return class_token + jnp.pad(patches, [(0, 0), (1, 0), (0, 0)])

    time, token = np.indices(shape[1:3])
    return Selection(select, (token <= places) & ((token > 0) | (time == 0)))


class TimeSformer(nn.Module):
    """A divided space-time transformer classifier.

    Attributes:
      num_classes: logits.
      frames: of the clips it is made for; the number of time embeddings. They are
        resized for another number, by nearest neighbour.
      size: height and width it is made for, in pixels; sets the grid of position
        embeddings, likewise resized.
      patch: height and width of a patch, in pixels.
      depth: blocks.
      width: channels of a token.
      heads: of attention.
      stem: widths of a `ConvStem`; there is none in the paper.
      dropout: rate before the classifier, in training.
      dtype: compute type of matrix products, None for float32; parameters are float32.
      remat: recompute each block in the backward pass instead of keeping it.
    """

    num_classes: int = 400
    frames: int = 8
    size: int = 224
    patch: int = 16
    depth: int = 12
    width: int = 768
    heads: int = 12
    stem: tuple[int, ...] = ()
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, video: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (b, classes) in float32 of a normalised video (b, t, h, w, 3).

        Raises:
          ValueError: height or width is no multiple of the patch.
        """
        b, t, h, w, _ = video.shape
        patch, c, grid = self.patch, self.width, self.size // self.patch
        if h % patch or w % patch or self.size % patch:
            odd = self.size if self.size % patch else f"{h}x{w}"
            raise ValueError(
                f"size={odd}: TimeSformer cuts frames into patches of {patch} pixels;"
                f" use a multiple of {patch}"
            )
        # the stem's convolutions do a part of the patches' shrinking
        x = ConvStem(self.stem, self.dtype, name="stem")(video)
        left = patch // 2 ** len(self.stem)
        embedding = patch_embedding(
            c, (left, left), dtype=self.dtype, name="patch_embedding"
        )
        patches = embedding(x).reshape(b, t, -1, c)
        places = patches.shape[2]
        shape = (1, 1, c)
        class_token = self.param("class_token", truncated_normal, shape)
        shape = (1, 1 + grid * grid, c)
        position = self.param("position_embedding", truncated_normal, shape)
        shape = (1, self.frames, c)
        time = self.param("time_embedding", truncated_normal, shape)

        rows, columns = _nearest(grid, h // patch), _nearest(grid, w // patch)
        space = position[:, 1:].reshape(grid, grid, c)[rows][:, columns]
        patches += space.reshape(1, 1, -1, c).astype(patches.dtype)
        patches += time[:, _nearest(self.frames, t), None].astype(patches.dtype)
        class_token = (class_token + position[:, :1]).astype(patches.dtype)
        class_token = jnp.broadcast_to(class_token, (b, t, 1, c))
        x = jnp.concatenate([class_token, patches], axis=2)
        x = pad_tokens(x, self.dtype)

        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            x = block(places, self.heads, 4 * c, self.dtype, name=f"block{i}")(x)
        x = LayerNorm(name="norm")(x, sequence(places, x.shape))
        x = x[:, 0, 0].astype(jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(
            self.num_classes, kernel_init=truncated_normal, name="classifier"
        )(x)


def _nearest(have: int, want: int) -> np.ndarray:
    """Indices of torch's nearest-neighbour resizing, floor(i * have / want).

    `jax.image.resize` rounds from the centres of pixels and takes others.
    """
    return np.arange(want) * have // want


# Table 1 and section 4 of arXiv:2102.05095: ViT-Base, for 8 frames at 224 pixels, for
# 16 at 448 (HR) and for 96 at 224 (L).
VARIANTS: dict[str, dict[str, Any]] = {
    "timesformer": {"patch": 16, "depth": 12, "width": 768, "heads": 12},
    "timesformer_hr": {"patch": 16, "depth": 12, "width": 768, "heads": 12},
    "timesformer_l": {"patch": 16, "depth": 12, "width": 768, "heads": 12},
    # this project's, to train from scratch: 7 x 7 patches at 112 pixels
    "timesformer_small": {
        "patch": 16,
        "depth": 6,
        "width": 192,
        "heads": 3,
        "stem": (24, 48, 96),
    },
}
