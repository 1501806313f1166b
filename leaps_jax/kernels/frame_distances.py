"""How far apart the frames of a feature are, in the form that each machine runs fast.

`plain` is its definition, and what CPUs and TPUs run. On a GPU it is a kernel, and its
gradient another: each reads a frame once, where XLA reads it again for every other.
tests/kernels/test_frame_distances.py holds them, interpreted, against it.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from leaps_jax.kernels.dispatch import kernel_or

_MOST = 16  # frames of a kernel, which has code and a register for each of 120 pairs


def frame_distances(z: jax.Array) -> jax.Array:
    """The mean absolute difference of every two frames, (b, pairs) in float32.

    Neighbours come first, then frames two apart and so on, each in order of time.

    Args:
      z: (b, t, ...); computed in float32, whatever its type.

    >>> frame_distances(jnp.array([[[0.0], [1.0], [3.0]]])).tolist()
    [[1.0, 2.0, 3.0]]
    """
    few = 1 < z.shape[1] <= _MOST
    form = kernel_or(plain, kernel=fused) if few else plain
    return jax.lax.platform_dependent(z, cuda=form, default=plain)


def plain(z: jax.Array) -> jax.Array:
    """All pairs as far apart in time at once."""
    z = z.astype(jnp.float32)
    everything = tuple(range(2, z.ndim))
    distances = [
        jnp.abs(z[:, gap:] - z[:, :-gap]).mean(everything)
        for gap in range(1, z.shape[1])
    ]
    return jnp.concatenate([jnp.zeros((len(z), 0)), *distances], axis=1)


def _pairs(t: int) -> list[tuple[int, int]]:
    """The frames of each distance."""
    return [(s, s + gap) for gap in range(1, t) for s in range(t - gap)]


_THREADS, _BLOCKS = 32, 4  # of a program: one warp, and the elements that it adds up


@jax.custom_vjp
def fused(z: jax.Array) -> jax.Array:
    """As one kernel, for GPUs, and the sum of what its programs found."""
    b, t, *rest = z.shape
    n, pairs = math.prod(rest), _pairs(t)
    width = pl.next_power_of_2(len(pairs))
    # of a frame and thread: 16 bytes, which is a load, where there are registers
    wide = min(16 // z.dtype.itemsize, 64 // pl.next_power_of_2(t))
    block = _THREADS * wide

    def kernel(z_ref, sums_ref):
        program, video = pl.program_id(0), pl.program_id(1)
        thread, pair = jnp.arange(_THREADS)[:, None], jnp.arange(width)

        def add(number, sums):
            start = (program * _BLOCKS + number) * block
            element = start + thread * wide + jnp.arange(wide)
            inside = _inside(element, n, _BLOCKS * block)
            x = _load(z_ref, _places(video, t, element, n), inside)
            # threads add up by themselves: adding over them takes longer
            return [
                so_far + jnp.abs(x[late] - x[early]).sum(1)
                for so_far, (early, late) in zip(sums, pairs, strict=True)
            ]

        sums = jax.lax.fori_loop(0, _BLOCKS, add, [jnp.zeros(_THREADS)] * len(pairs))
        row = jnp.zeros(width)
        for number, of_threads in enumerate(sums):
            row = jnp.where(pair == number, of_threads.sum(), row)
        triton.store(sums_ref.at[video, program, pair], row)

    programs = pl.cdiv(n, _BLOCKS * block)
    sums = pl.pallas_call(
        kernel,
        grid=(programs, b),
        out_shape=jax.ShapeDtypeStruct((b, programs, width), jnp.float32),
        compiler_params=triton.CompilerParams(num_warps=1),
        name="frame_distances",
    )(z.reshape(-1))
    return sums.sum(1)[:, : len(pairs)] / n


def _fused_forward(z):
    return fused(z), z


_WARPS, _ELEMENTS = 4, 4096  # of a program of the gradient, in all frames


def _fused_backward(z, gradient):
    b, t, *rest = z.shape
    n, pairs = math.prod(rest), _pairs(t)
    block = _ELEMENTS // pl.next_power_of_2(t)

    def kernel(z_ref, gradient_ref, of_z_ref):
        program, video = pl.program_id(0), pl.program_id(1)
        element = program * block + jnp.arange(block)
        inside, places = _inside(element, n, block), _places(video, t, element, n)
        x = _load(z_ref, places, inside)
        of_x = [jnp.zeros(block)] * t
        for pair, (early, late) in enumerate(pairs):
            slope = triton.load(gradient_ref.at[video * len(pairs) + pair])
            # that of jnp.abs is 1 at 0
            slope = jnp.where(x[late] >= x[early], slope, -slope)
            of_x[early] -= slope
            of_x[late] += slope
        for place, y in zip(places, of_x, strict=True):
            triton.store(of_z_ref.at[place], y.astype(z.dtype), mask=inside)

    of_z = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(n, block), b),
        out_shape=jax.ShapeDtypeStruct((z.size,), z.dtype),
        compiler_params=triton.CompilerParams(num_warps=_WARPS),
        name="frame_distances_gradient",
    )(z.reshape(-1), gradient.reshape(-1) / n)
    return (of_z.reshape(z.shape),)


fused.defvjp(_fused_forward, _fused_backward)


def _inside(element: jax.Array, n: int, step: int) -> jax.Array | None:
    """Which of a program's elements there are; None for all, as it takes `step`."""
    return element < n if n % step else None


def _places(video: jax.Array, t: int, element: jax.Array, n: int) -> list[jax.Array]:
    """Where these elements of n of each frame of a video are."""
    return [(video * t + frame) * n + element for frame in range(t)]


def _load(ref, places: list[jax.Array], inside: jax.Array | None) -> list[jax.Array]:
    """What is there, in float32, and zeros beyond the last element."""
    other = None if inside is None else 0.0
    values = [triton.load(ref.at[at], mask=inside, other=other) for at in places]
    return [x.astype(jnp.float32) for x in values]
