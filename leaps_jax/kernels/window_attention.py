"""Attention within shifted windows of a video, in the form that each machine runs fast.

The definition rolls the tokens, cuts them into windows, attends within each and puts
them together again. On a GPU in half precision kernels do it in place: they read the
tokens of a window where they are, and never have the scores in memory.
tests/kernels/test_window_attention.py holds them, interpreted, against the definition.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from leaps_jax.kernels import attention, dispatch
from leaps_jax.kernels.dispatch import triton

ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)
Size = tuple[int, ...]


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, window: Size, shift: Size
) -> jax.Array:
    """Attention of every token to those of its window, after a roll by -shift.

    Tokens that the roll brought together from two sides of the video do not attend to
    each other.

    Args:
      q: (b, t, h, w, heads, d), whole windows along every axis.
      k: likewise.
      v: likewise.
      bias: (heads, n, n), added to the scores of the n tokens of a window.
      window: its size in tokens.
      shift: in tokens.

    Returns:
      As q.
    """
    by_definition = functools.partial(_by_definition, window=window, shift=shift)
    d = q.shape[-1]
    if q.dtype not in attention.HALF or d < 16 or d != pl.next_power_of_2(d):
        return by_definition(q, k, v, bias)
    in_place = functools.partial(_in_place, window=window, shift=shift)
    return dispatch.by_platform(by_definition, gpu=in_place)(q, k, v, bias)


def partition(x: ArrayT, window: Sequence[int]) -> ArrayT:
    """Cuts (b, t, h, w, c) into windows: (b, windows, tokens, c)."""
    b, t, h, w, c = x.shape
    i, j, k = window
    x = x.reshape(b, t // i, i, h // j, j, w // k, k, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, i * j * k, c)


def assemble(x: jax.Array, window: Sequence[int], size: Sequence[int]) -> jax.Array:
    """Puts windows (b, windows, tokens, c) together again: (b, *size, c)."""
    b, *_, c = x.shape
    i, j, k = window
    t, h, w = size
    x = x.reshape(b, t // i, h // j, w // k, i, j, k, c)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, t, h, w, c)


def origins(
    size: Sequence[int], window: Sequence[int], shift: Sequence[int]
) -> np.ndarray:
    """Which tokens of a window were neighbours before the roll, (windows, tokens).

    Rolling by -shift brings the first tokens of an axis to its end, into one window
    with tokens from the other side. Those of equal number came from the same side of
    every axis.

    >>> origins((1, 1, 6), (1, 1, 3), (0, 0, 1))
    array([[0, 0, 0],
           [0, 0, 1]])
    """
    ends = np.reshape(size, (3, 1, 1, 1)) - np.reshape(shift, (3, 1, 1, 1))
    t, h, w = (np.indices(size) >= ends).astype(int)
    return partition((4 * t + 2 * h + w)[None, ..., None], window)[0, ..., 0]


_MASKED = -100.0  # added to scores between tokens of different origins


def _by_definition(q, k, v, bias, window, shift):
    size, (heads, d) = q.shape[1:4], q.shape[4:]
    back = tuple(-s for s in shift)

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.roll(x.reshape(*x.shape[:4], -1), back, (1, 2, 3))
        x = partition(x, window)
        return x.reshape(*x.shape[:3], heads, d)

    factored_bias = None
    if any(shift):
        own = jax.nn.one_hot(origins(size, window, shift), 8, dtype=q.dtype)
        factored_bias = _MASKED * (1 - own)[:, :, None], own  # windows n 1 8
    y = attention.products(cut(q), cut(k), cut(v), bias, factored_bias)
    y = assemble(y.reshape(*y.shape[:3], -1), window, size)
    return jnp.roll(y, shift, (1, 2, 3)).reshape(q.shape)


# Of one program: its own tokens, and how many at a time it goes through of the others.
_OWN, _OTHERS = 64, 64
_WARPS, _STAGES = 4, 3
_LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the tokens of windows are among those of (b, t, h, w, heads)."""

    shape: tuple[int, ...]
    window: Size
    shift: Size

    @property
    def tokens(self) -> int:
        return math.prod(self.window)

    @property
    def windows(self) -> int:
        """The number of windows of one video."""
        return math.prod(self.shape[1:4]) // self.tokens

    def rows(self, number: jax.Array, head: jax.Array, token: jax.Array) -> jax.Array:
        """The rows of some tokens of a window, numbered over all videos."""
        windows, tokens = self.windows, self.tokens
        row, number = jax.lax.div(number, windows), jax.lax.rem(number, windows)
        for n, k, s in zip(self.shape[1:4], self.window, self.shift, strict=True):
            windows, tokens = windows // (n // k), tokens // k
            place = jax.lax.div(number, windows) * k + jax.lax.div(token, tokens) + s
            number, token = jax.lax.rem(number, windows), jax.lax.rem(token, tokens)
            row = row * n + (jnp.where(place < n, place, place - n) if s else place)
        return row * self.shape[4] + head


def _table(
    bias: jax.Array, layout: _Layout, dtype: Any
) -> tuple[jax.Array, np.ndarray]:
    """Bias and mask of scores, to base two, and which of the tables a window has.

    Windows that mask the same pairs of tokens share a table. Queries are padded to
    whole programs. Keys are padded to whole blocks, with a weight of zero.

    Returns:
      (kinds, heads, blocks, own, others of a block), and (windows,).
    """
    sides = origins(layout.shape[1:4], layout.window, layout.shift)
    sides, kind = np.unique(sides, axis=0, return_inverse=True)
    masked = sides[:, None, :, None] != sides[:, None, None]
    scores = _LOG2_E * (bias + _MASKED * masked)
    own, others = (-layout.tokens % k for k in (_OWN, _OTHERS))
    scores = jnp.pad(scores, ((0, 0), (0, 0), (0, own), (0, 0)))
    margins = ((0, 0), (0, 0), (0, 0), (0, others))
    scores = jnp.pad(scores, margins, constant_values=-jnp.inf)
    scores = scores.reshape(*scores.shape[:3], -1, _OTHERS).swapaxes(2, 3)
    return scores.astype(dtype), kind.reshape(-1).astype(np.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _in_place(q, k, v, bias, window, shift):
    y, _ = _attended(q, k, v, bias, window, shift)
    return y


def _attended(q, k, v, bias, window, shift):
    layout = _Layout(q.shape[:5], window, shift)

    def kernel(q_ref, k_ref, v_ref, table_ref, kind_ref, y_ref, lse_ref):
        program = _Program(layout, q.shape[5])
        kind = triton.load(kind_ref.at[program.window])
        query = program.scaled(program.tile(q_ref, program.own))

        def add(block, so_far):
            total, top, y = so_far
            others = program.others(block)
            key, value = program.tile(k_ref, others), program.tile(v_ref, others)
            scores = program.added(table_ref, kind, block) + _product(query, key, 1)
            before, top = top, jnp.maximum(top, scores.max(1))
            weights = _exp2(scores - top[:, None])
            shrunk = _exp2(before - top)
            y = y * shrunk[:, None] + _product(weights.astype(v.dtype), value, 0)
            return total * shrunk + weights.sum(1), top, y

        zeros = jnp.zeros(_OWN), jnp.full(_OWN, -jnp.inf), jnp.zeros((_OWN, q.shape[5]))
        total, top, y = program.over_blocks(add, zeros)
        program.store(y_ref, y / total[:, None])
        rows, real = program.rows(program.own)
        triton.store(lse_ref.at[rows], top + jnp.log2(total), mask=real)

    table = _table(bias, layout, q.dtype)
    lse_shape = jax.ShapeDtypeStruct((math.prod(layout.shape),), jnp.float32)
    out = jax.ShapeDtypeStruct((q.size,), q.dtype), lse_shape
    y, lse = _by_window(kernel, "attend_in_windows", layout, out, (q, k, v), table)
    return y.reshape(q.shape), lse


def _forward(q, k, v, bias, window, shift):
    y, lse = _attended(q, k, v, bias, window, shift)
    return y, (q, k, v, bias, y, lse)


def _backward(window, shift, saved, gradient):
    q, k, v, bias, y, lse = saved
    layout = _Layout(q.shape[:5], window, shift)
    means = (y.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(-1).reshape(-1)
    queries, keys = (q, gradient), (k, v)
    table = _table(bias, layout, q.dtype)
    (dq,) = _gradient(layout, queries, keys, lse, means, table, for_keys=False)
    table = _table(bias.swapaxes(1, 2), layout, q.dtype)
    dk, dv = _gradient(layout, keys, queries, lse, means, table, for_keys=True)
    # dead code where weights are constants, as in a synthesis
    _, transpose = jax.vjp(lambda b: _by_definition(q, k, v, b, window, shift), bias)
    return dq, dk, dv, *transpose(gradient)


_in_place.defvjp(_forward, _backward)


def _gradient(layout, own, others, lse, means, table, *, for_keys):
    """That of queries, or those of keys and values, each from all of the others.

    Args:
      layout: of the tokens.
      own: queries and the gradient of what they got; or keys and values.
      others: keys and values; or the former.
      lse: of each query, the logarithm of the sum of its scores' powers of two.
      means: likewise, of the gradients of its weights.
      table: for these own tokens, and kinds.
      for_keys: whether own are keys and values.
    """
    like, d = own[0], own[0].shape[5]

    def kernel(
        a_ref, b_ref, c_ref, e_ref, lse_ref, means_ref, table_ref, kind_ref, *results
    ):
        program = _Program(layout, d)
        kind = triton.load(kind_ref.at[program.window])
        a = program.scaled(program.tile(a_ref, program.own))
        b = program.tile(b_ref, program.own)

        def known(token, axis):
            """`lse` and `means` of queries along an axis of the scores."""
            rows, real = program.rows(token)
            found = (
                triton.load(ref.at[rows], mask=real, other=0.0)
                for ref in (lse_ref, means_ref)
            )
            return [jnp.expand_dims(x, 1 - axis) for x in found]

        once = known(program.own, 0)

        def add(block, sums):
            tokens = program.others(block)
            c, e = program.tile(c_ref, tokens), program.tile(e_ref, tokens)
            lse, means = known(tokens, 1) if for_keys else once
            scores = program.added(table_ref, kind, block) + _product(a, c, 1)
            weights = _exp2(scores - lse)
            dscores = weights * (_product(b, e, 1) - means)
            pairs = [(dscores, c), (weights, e)][: len(results)]
            return [
                total + _product(x.astype(like.dtype), y, 0)
                for total, (x, y) in zip(sums, pairs, strict=True)
            ]

        zeros = [jnp.zeros((_OWN, d))] * len(results)
        da, *db = program.over_blocks(add, zeros)
        for ref, total in zip(results, (da * d**-0.5, *db), strict=True):
            program.store(ref, total)

    out = [jax.ShapeDtypeStruct((like.size,), like.dtype)] * (2 if for_keys else 1)
    name = f"attend_in_windows_gradient_of_{'keys' if for_keys else 'queries'}"
    arrays = (*own, *others, lse, means)
    gradients = _by_window(kernel, name, layout, out, arrays, table)
    return [x.reshape(like.shape) for x in gradients]


def _by_window(kernel, name, layout, out_shape, arrays, table):
    n = math.prod(layout.shape[:4]) // layout.tokens
    return pl.pallas_call(
        kernel,
        grid=(n, pl.cdiv(layout.tokens, _OWN) * layout.shape[4]),
        out_shape=out_shape,
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
        name=name,
    )(*(x.reshape(-1) for x in arrays), *table)


class _Program:
    """One program of a kernel: one window, one head, and some tokens of its own."""

    def __init__(self, layout: _Layout, d: int):
        self.layout, self.d = layout, d
        self.number = pl.program_id(0)
        self.window = jax.lax.rem(self.number, layout.windows)
        self.head = jax.lax.rem(pl.program_id(1), layout.shape[4])
        self.start = jax.lax.div(pl.program_id(1), layout.shape[4]) * _OWN
        self.own = self.start + jnp.arange(_OWN)

    def others(self, block: jax.Array) -> jax.Array:
        return block * _OTHERS + jnp.arange(_OTHERS)

    def over_blocks(self, add, zeros):
        blocks = pl.cdiv(self.layout.tokens, _OTHERS)
        return jax.lax.fori_loop(0, blocks, add, zeros)

    def rows(self, token: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The numbers of tokens, and which of them exist."""
        real = token < self.layout.tokens
        rows = self.layout.rows(self.number, self.head, token)
        # not where another token is: the interpreter writes what is masked, too
        return jnp.where(real, rows, math.prod(self.layout.shape)), real

    def _elements(self, token: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows, real = self.rows(token)
        return rows[:, None] * self.d + jnp.arange(self.d), real[:, None]

    def tile(self, ref, token: jax.Array) -> jax.Array:
        """(tokens, d), zeros beyond the last one."""
        elements, real = self._elements(token)
        return triton.load(ref.at[elements], mask=real, other=0.0)

    def scaled(self, x: jax.Array) -> jax.Array:
        scale = _LOG2_E * self.d**-0.5
        return (x.astype(jnp.float32) * scale).astype(x.dtype)

    def added(self, table_ref, kind: jax.Array, block: jax.Array) -> jax.Array:
        tile = table_ref.at[kind, self.head, block, pl.ds(self.start, _OWN), :]
        return triton.load(tile).astype(jnp.float32)

    def store(self, ref, x: jax.Array) -> None:
        elements, real = self._elements(self.own)
        triton.store(ref.at[elements], x.astype(ref.dtype), mask=real)


def _product(a: jax.Array, b: jax.Array, over: int) -> jax.Array:
    """Over the columns of a, and over the rows (0) or the columns (1) of b."""
    axes = (((1,), (over,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _exp2(x: jax.Array) -> jax.Array:
    """`jnp.exp2` without the three instructions that it has for nearly zero results."""
    (y,) = triton.elementwise_inline_asm(
        "ex2.approx.ftz.f32 $0, $1;",
        args=[x],
        constraints="=f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )
    return y
