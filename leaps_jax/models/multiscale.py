"""Parts of multiscale vision transformers: patches, positions and pooling attention.

Tokens are a sequence (b, n, c): class tokens, then those of a grid (t, h, w) in order.
The modules are told the grid.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.kernels.attention import attend
from leaps_jax.models.layers import (
    Conv,
    DepthwiseConv,
    LayerNorm,
    Size3,
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
            " masked; use a multiple of each"
        )
    t, h, w = (n // s for n, s in zip(clip, PATCH_STRIDE, strict=True))
    return t, h, w


def pooled(grid: Size3, stride: int) -> Size3:
    """The grid that pooling with a window of 3, padded by 1, leaves."""
    t, h, w = grid
    return t, -(-h // stride), -(-w // stride)


def key_stride(stage: int) -> int:
    """The stride of the pooling of keys and values, smaller where tokens are few.

    >>> [key_stride(stage) for stage in range(4)]
    [8, 4, 2, 1]
    """
    return max(8 // 2**stage, 1)


def patch_embedding(width: int, dtype: jnp.dtype | None) -> Conv:
    """The convolution that cuts a video into patches."""
    return Conv(
        width,
        PATCH,
        PATCH_STRIDE,
        use_bias=True,
        dtype=dtype,
        kernel_init=nn.initializers.lecun_normal(),
        name="patch_embedding",
    )


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


def resized(embedding: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Embeddings of another grid, by linear interpolation along each axis."""
    if embedding.shape == shape:
        return embedding
    return jax.image.resize(embedding, shape, "linear", antialias=False)


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
        space = resized(space.reshape(*places, c), (h, w, c))
        return x + (resized(time, (t, c))[:, None, None] + space).astype(x.dtype)


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
        conv = DepthwiseConv(
            (3, 3, 3), stride, self.dtype, heads=x.shape[2], name="conv"
        )
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
    """Relative position bias: what the way from a query to a key adds to their score.

    It is a sum over time, height and width, each the product of the query with an
    embedding of the distance along that axis. A query has its products with the
    distances to every step, row and column, and a key looks up those of its place.

    Attributes:
      queries: grid that the tables are made for. They are resized for another, by
        linear interpolation.
      keys: likewise.
    """

    queries: Size3
    keys: Size3

    @nn.compact
    def __call__(self, q: jax.Array, keys: Size3) -> tuple[jax.Array, np.ndarray]:
        """Maps queries (b, t, h, w, heads, c) to what `attend` looks up.

        That is (b, t * h * w, heads, e) and (keys, e), with e = sum(keys).
        """
        b, *queries, heads, c = q.shape

        def along(axis: int, name: str, product: str) -> jax.Array:
            shape = (2 * max(self.queries[axis], self.keys[axis]) - 1, c)
            table = self.param(name, truncated_normal, shape)
            table = resized(table, (2 * max(queries[axis], keys[axis]) - 1, c))
            embedding = table[distances(queries[axis], keys[axis])].astype(q.dtype)
            return jnp.einsum(product, q, embedding, preferred_element_type=jnp.float32)

        values = jnp.concatenate(
            [
                along(0, "time", "bthwnc,tkc->bthwnk"),
                along(1, "height", "bthwnc,hkc->bthwnk"),
                along(2, "width", "bthwnc,wkc->bthwnk"),
            ],
            axis=-1,
        )
        places = np.indices(keys).reshape(3, -1)
        one_hot = [np.eye(n)[at] for n, at in zip(keys, places, strict=True)]
        return values.reshape(b, -1, heads, sum(keys)), np.concatenate(one_hot, 1)


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
        factored_bias = None
        if self.table_grid is not None:
            queries = pooled(self.grid, self.query_stride or 1)
            keys = pooled(self.grid, self.key_stride)
            values, places = self.relative_position(
                patches.reshape(b, *queries, *q.shape[2:]), keys
            )
            # class tokens are nowhere
            margin = (self.class_tokens, 0)
            values = jnp.pad(values, ((0, 0), margin, (0, 0), (0, 0)))
            factored_bias = values, np.pad(places, (margin, (0, 0)))
        x = attend(q, k, v, factored_bias=factored_bias)
        if self.residual:
            x = x.at[:, self.class_tokens :].add(patches)
        return self.proj(x.reshape(*x.shape[:2], -1))
