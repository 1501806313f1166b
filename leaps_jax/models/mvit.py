"""Multiscale vision transformers: MViT, MViTv2 and the reversible MViT.

Attention pools its queries, keys and values by strided convolutions. From one stage to
the next the channels and the heads double while the pooling of queries halves height
and width; time is never pooled after the patches are cut. MViT (Fan et al.,
arXiv:2104.11227) adds an embedding of its place to every token. MViTv2 (Li et al.,
arXiv:2112.01526) adds relative positions to the scores and the pooled queries to what
they attend to. The reversible MViT (Mangalam et al., arXiv:2302.04869) has two streams
that update each other.

>>> import jax, jax.numpy as jnp
>>> fields = VARIANTS["mvitv2_s_16x4"] | {"depths": (1, 1), "width": 8}
>>> model = MViT(num_classes=5, frames=4, size=32, **fields)
>>> video = jnp.zeros((1, 4, 32, 32, 3))
>>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
>>> logits.shape
(1, 5)
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.models.layers import (
    DepthwiseConv,
    LayerNorm,
    Mlp,
    Size3,
    attend,
    max_pool,
    truncated_normal,
    xavier_uniform,
)

# Of patches: they overlap.
PATCH: Size3 = (3, 7, 7)
PATCH_STRIDE: Size3 = (2, 4, 4)


def patch_grid(frames: int, height: int, width: int) -> Size3:
    """The grid of patches of a clip.

    Raises:
      ValueError: frames, height or width are no multiple of the stride of patches.
    """
    clip = (frames, height, width)
    if any(n % s or not n for n, s in zip(clip, PATCH_STRIDE, strict=True)):
        have, need = ("x".join(map(str, size)) for size in (clip, PATCH_STRIDE))
        raise ValueError(
            f"clip of {have} (frames x height x width): MViT cuts its patches {need}"
            " apart; use a multiple of each"
        )
    t, h, w = (n // s for n, s in zip(clip, PATCH_STRIDE, strict=True))
    return t, h, w


def pooled(grid: Size3, stride: int) -> Size3:
    """The grid that pooling with a window of 3, padded by 1, leaves."""
    t, h, w = grid
    return t, -(-h // stride), -(-w // stride)


def key_stride(stage: int) -> int:
    """Of the pooling of keys and values: less where there are fewer tokens.

    >>> [key_stride(stage) for stage in range(4)]
    [8, 4, 2, 1]
    """
    return max(8 // 2**stage, 1)


def windows(x: jax.Array, axis: int, kernel: int, stride: int) -> jax.Array:
    """What a convolution sees along an axis, which becomes two: its steps, kernel."""
    margins = [(0, 0)] * x.ndim
    margins[axis] = (kernel // 2, kernel // 2)
    span = (x.shape[axis] - 1) // stride * stride + 1
    x = jnp.pad(x, margins)
    parts = [
        jax.lax.slice_in_dim(x, i, i + span, stride, axis=axis) for i in range(kernel)
    ]
    return jnp.stack(parts, axis=axis + 1)


class PatchEmbedding(nn.Module):
    """The convolution that cuts a video into patches.

    Written as a matrix product: the gradient of that convolution with respect to the
    video takes XLA minutes on a CPU.
    """

    width: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        """Maps (b, t, h, w, 3) to (b, t', h', w', c)."""
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (*PATCH, video.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
        dtype = self.dtype or jnp.promote_types(video.dtype, jnp.float32)
        x, kernel, bias = (x.astype(dtype) for x in (video, kernel, bias))
        for axis in (3, 2, 1):  # from behind: every axis becomes two
            x = windows(x, axis, PATCH[axis - 1], PATCH_STRIDE[axis - 1])
        return jnp.einsum("btihjwkc,ijkcd->bthwd", x, kernel) + bias


def over_grid(
    function: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    grid: Size3,
    class_tokens: int,
) -> jax.Array:
    """Applies a function of (b, t, h, w, c) to tokens (b, n, ...) of a grid.

    The class tokens before them pass by.
    """
    before, x = x[:, :class_tokens], x[:, class_tokens:]
    y = function(x.reshape(x.shape[0], *grid, -1))
    return jnp.concatenate([before, y.reshape(x.shape[0], -1, *x.shape[2:])], axis=1)


class SeparablePosition(nn.Module):
    """Adds an embedding of its place and one of its time step to every patch.

    Both are resized for another grid than theirs, by linear interpolation.
    """

    grid: Size3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        t, h, w, c = x.shape[1:]
        steps, *places = self.grid
        space = self.param("space", truncated_normal, (places[0] * places[1], c))
        time = self.param("time", truncated_normal, (steps, c))
        space = _resized(space.reshape(*places, c), (h, w, c))
        return x + (_resized(time, (t, c))[:, None, None] + space).astype(x.dtype)


def _resized(embedding: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if embedding.shape == shape:
        return embedding
    return jax.image.resize(embedding, shape, "linear", antialias=False)


class Pool(nn.Module):
    """A depthwise convolution over the tokens of every head, then a norm.

    The heads share the kernel.
    """

    grid: Size3
    stride: int
    class_tokens: int
    epsilon: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens (b, n, heads, c) to fewer."""
        stride = (1, self.stride, self.stride)
        conv = DepthwiseConv((3, 3, 3), stride, self.dtype, x.shape[2], name="conv")
        x = over_grid(conv, x, self.grid, self.class_tokens)
        return LayerNorm(
            self.epsilon,
            time_axis=1,
            time_steps=self.grid[0],
            class_tokens=self.class_tokens,
            name="norm",
        )(x)


def distances(queries: int, keys: int) -> np.ndarray:
    """Rows of a table of relative positions, by query and key along an axis.

    Both are laid over the finer of the two grids; row 0 is the first query's way to
    the last key.

    >>> distances(4, 2)
    array([[2, 0],
           [3, 1],
           [4, 2],
           [5, 3]])
    """
    finer = max(queries, keys)
    query, key = np.arange(queries)[:, None], np.arange(keys)[None]
    return query * finer // queries + (keys - 1 - key) * finer // keys


class RelativePosition(nn.Module):
    """What the way from a query to a key adds to their score.

    It is a sum over time, height and width, each the product of the query with an
    embedding of the distance along that axis.

    Attributes:
      queries: grid that the tables are made for. They are resized for another, by
        linear interpolation.
      keys: likewise.
    """

    queries: Size3
    keys: Size3

    @nn.compact
    def __call__(self, q: jax.Array, keys: Size3) -> jax.Array:
        """Maps queries (b, t, h, w, heads, c) to scores (b, heads, t * h * w, keys)."""
        b, *queries, heads, c = q.shape

        def along(axis: int, name: str, product: str) -> jax.Array:
            shape = (2 * max(self.queries[axis], self.keys[axis]) - 1, c)
            table = self.param(name, truncated_normal, shape)
            table = _resized(table, (2 * max(queries[axis], keys[axis]) - 1, c))
            embedding = table[distances(queries[axis], keys[axis])].astype(q.dtype)
            return jnp.einsum(product, q, embedding, preferred_element_type=jnp.float32)

        time = along(0, "time", "bthwnc,tkc->bnthwk")[..., :, None, None]
        height = along(1, "height", "bthwnc,hkc->bnthwk")[..., None, :, None]
        width = along(2, "width", "bthwnc,wkc->bnthwk")[..., None, None, :]
        return (time + height + width).reshape(b, heads, -1, math.prod(keys))


class PoolingAttention(nn.Module):
    """Multi-head self-attention with pooled queries, keys and values.

    Attributes:
      heads: of attention.
      head_width: channels of each.
      grid: of the tokens that come in.
      query_stride: height and width of the pooling of queries; None for no pooling.
      key_stride: of the pooling of keys and values.
      table_grid: what `grid` is in clips that the relative positions are made for;
        None for no relative positions.
      residual: add the pooled queries to what they attend to.
      class_tokens: before the tokens of the grid.
      qkv_bias: the matrix to queries, keys and values has a bias.
      epsilon: of the norms after pooling.
      dtype: compute type, None for float32.
    """

    heads: int
    head_width: int
    grid: Size3
    query_stride: int | None
    key_stride: int
    table_grid: Size3 | None = None
    residual: bool = False
    class_tokens: int = 1
    qkv_bias: bool = True
    epsilon: float = 1e-6
    dtype: jnp.dtype | None = None

    def setup(self) -> None:
        width = self.heads * self.head_width
        dense = functools.partial(
            nn.Dense, dtype=self.dtype, kernel_init=xavier_uniform
        )
        options = (self.class_tokens, self.epsilon, self.dtype)
        self.qkv = dense(3 * width, use_bias=self.qkv_bias)
        if self.query_stride is not None:
            self.pool_q = Pool(self.grid, self.query_stride, *options)
        self.pool_k = Pool(self.grid, self.key_stride, *options)
        self.pool_v = Pool(self.grid, self.key_stride, *options)
        if self.table_grid is not None:
            self.relative_position = RelativePosition(
                pooled(self.table_grid, self.query_stride or 1),
                pooled(self.table_grid, self.key_stride),
            )
        self.proj = dense(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens (b, n, c) to (b, n', heads * head_width), n' by the queries."""
        b, n, _ = x.shape
        # the rows of torch's matrix are ordered q, k, v, then head, then channel
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, self.head_width)
        q, k, v = (qkv[:, :, i] for i in range(3))  # b n heads d
        if self.query_stride is not None:
            q = self.pool_q(q)
        k, v = self.pool_k(k), self.pool_v(v)
        patches = q[:, self.class_tokens :]
        bias = None
        if self.table_grid is not None:
            queries = pooled(self.grid, self.query_stride or 1)
            keys = pooled(self.grid, self.key_stride)
            bias = self.relative_position(
                patches.reshape(b, *queries, *q.shape[2:]), keys
            )
            margin = (self.class_tokens, 0)  # class tokens are nowhere
            bias = jnp.pad(bias, ((0, 0), (0, 0), margin, margin))
        x = attend(q, k, v, bias)
        if self.residual:
            x = x.at[:, self.class_tokens :].add(patches)
        return self.proj(x.reshape(*x.shape[:2], -1))


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
        y = LayerNorm(time_axis=1, time_steps=steps, name="norm")(x)
        attended = self.attention(name="attention")(y)
        x = widened(x, y, attended.shape[-1])
        if self.stride > 1:
            pool = functools.partial(
                max_pool, window=(1, 3, 3), stride=stride, padding=(0, 1, 1)
            )
            x = over_grid(pool, x, self.grid, class_tokens=1)
        x += attended
        y = LayerNorm(time_axis=1, time_steps=steps, name="mlp_norm")(x)
        mlp = Mlp(4 * x.shape[-1], self.width, dtype=self.dtype, name="mlp")
        return widened(x, y, self.width) + mlp(y)


class ReversibleBlock(nn.Module):
    """Attention of one stream updates the other, and an MLP of that the first.

    Both can be had back from what comes out, so that training need not keep them;
    here `remat` does that.

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
        norm = functools.partial(
            LayerNorm, time_axis=1, time_steps=self.steps, class_tokens=0
        )
        a += self.attention(name="attention")(norm(name="norm")(b))
        mlp = Mlp(4 * a.shape[-1], dtype=self.dtype, name="mlp")
        return a, b + mlp(norm(name="mlp_norm")(a))


class Transition(nn.Module):
    """An ordinary block between two stages: both streams start again from its output.

    It takes their mean. What it adds to has double channels by a matrix, and is pooled
    as its queries are, by the same kernel and norm.
    """

    attention: Callable[..., nn.Module]
    steps: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        norm = functools.partial(
            LayerNorm, time_axis=1, time_steps=self.steps, class_tokens=0
        )
        x = (a + b) / 2
        attention = self.attention(name="attention")
        y = nn.Dense(
            2 * x.shape[-1], dtype=self.dtype, kernel_init=xavier_uniform, name="widen"
        )(x)
        y = attention.pool_q(y.reshape(*x.shape[:2], attention.heads, -1))
        y = y.reshape(*y.shape[:2], -1)
        x = y + attention(norm(name="norm")(x))
        mlp = Mlp(4 * x.shape[-1], dtype=self.dtype, name="mlp")
        x += mlp(norm(name="mlp_norm")(x))
        return x, x


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
        x = PatchEmbedding(self.width, self.dtype, name="patch_embedding")(
            video
        )  # b t h w c
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
            stride = 2 if stage > stages[max(i - 1, 0)] else 1
            after = stage if self.widen_early else stages[min(i + 1, len(stages) - 1)]
            attention = functools.partial(
                PoolingAttention,
                heads=2**stage,
                head_width=self.width,
                grid=grid,
                query_stride=stride if self.pool_queries or stride > 1 else None,
                key_stride=key_stride(stage),
                table_grid=table_grid if self.relative else None,
                residual=self.residual,
                epsilon=self.pool_epsilon,
                dtype=self.dtype,
            )
            x = block(
                attention,
                self.width * 2**after,
                grid,
                stride,
                self.dtype,
                name=f"block{i}",
            )(x)
            grid, table_grid = pooled(grid, stride), pooled(table_grid, stride)
        x = LayerNorm(time_axis=1, time_steps=grid[0], name="norm")(x)
        x = x[:, 0].astype(jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(
            self.num_classes, kernel_init=truncated_normal, name="classifier"
        )(x)


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
        x = PatchEmbedding(self.width, self.dtype, name="patch_embedding")(
            video
        )  # b t h w c
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
        x = LayerNorm(time_axis=1, time_steps=grid[0], class_tokens=0, name="norm")(x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(
            self.num_classes, kernel_init=truncated_normal, name="classifier"
        )(x)


# MViT-B: table 3 of arXiv:2104.11227. MViTv2-S and -B: table 1 of arXiv:2112.01526 and
# SlowFast's configurations. Reversible MViT-B: SlowFast's rev_mvit_b_16x4_conv.
VARIANTS: dict[str, dict[str, Any]] = {
    "mvit_b_16x4": {
        "depths": (1, 2, 11, 2),
        "width": 96,
        "relative": False,
        "residual": False,
        "pool_queries": False,
        "widen_early": False,
    },
    "mvitv2_s_16x4": {
        "depths": (1, 2, 11, 2),
        "width": 96,
        "relative": True,
        "residual": True,
        "pool_queries": True,
        "widen_early": True,
    },
    "mvitv2_b_32x3": {
        "depths": (2, 3, 16, 3),
        "width": 96,
        "relative": True,
        "residual": True,
        "pool_queries": True,
        "widen_early": True,
    },
    "rev_mvit_b_16x4": {"depths": (1, 2, 11, 2), "width": 96},
}
