"""GELU, in the form that each machine runs fast.

On CPUs and TPUs it is Flax's. On a GPU it is a kernel, and its gradient another that
computes it again: XLA's erf takes longer there than reading and writing does.
tests/kernels/test_gelu.py holds them, interpreted, against Flax.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from leaps_jax.kernels import dispatch
from leaps_jax.kernels.dispatch import triton


def gelu(x: jax.Array, tanh: bool) -> jax.Array:
    """A number times the normal distribution's function of it, in float32 inside.

    Args:
      x: any shape.
      tanh: approximate that function by a tanh; exact if False.
    """
    plain = functools.partial(nn.gelu, approximate=tanh)
    return dispatch.by_platform(plain, gpu=functools.partial(fused, tanh=tanh))(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def fused(x: jax.Array, tanh: bool) -> jax.Array:
    """One kernel, for GPUs."""
    return _elementwise(_gelu_by_tanh if tanh else _gelu, x, name="gelu")


def _fused_forward(x, tanh):
    return fused(x, tanh), x


def _fused_backward(tanh, x, gradient):
    slope = _slope_by_tanh if tanh else _slope

    def backward(x, gradient):
        return slope(x) * gradient

    return (_elementwise(backward, x, gradient, name="gelu_gradient"),)


fused.defvjp(_fused_forward, _fused_backward)


def _gelu(x):
    tail, _ = _tail(x)
    return jnp.maximum(x, 0.0) - jnp.abs(x) * tail


def _slope(x):
    tail, bell = _tail(x)
    return jnp.where(x > 0, 1 - tail, tail) + x * bell * (2 * jnp.pi) ** -0.5


def _tail(x):
    """The normal distribution's mass beyond |x|, to 1e-7, and exp(-x^2 / 2).

    By equation 7.1.26 of Abramowitz and Stegun, "Handbook of Mathematical Functions":
    one exponential, which the gradient needs in any case, and a polynomial.
    """
    bell = jnp.exp(-0.5 * x * x)
    t = 1 + 0.3275911 * 0.5**0.5 * jnp.abs(x)
    t = jax.lax.rsqrt(t * t)  # one instruction, where a division takes several
    tail = 0.0
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = (tail + factor) * t
    return 0.5 * tail * bell, bell


_LINEAR, _CUBIC = (2 / jnp.pi) ** 0.5, 0.044715


def _gelu_by_tanh(x):
    return x * _share_by_tanh(x)


def _slope_by_tanh(x):
    share = _share_by_tanh(x)
    steep = 2 * _LINEAR * (1 + 3 * _CUBIC * x * x)
    return share * (1 + x * (1 - share) * steep)


def _share_by_tanh(x):
    """(1 + tanh(u)) / 2 by one exponential."""
    return 1 / (1 + jnp.exp(-2 * _LINEAR * (x + _CUBIC * x * x * x)))


_ELEMENTS, _WARPS = 4096, 4  # of one program


def _elementwise(
    function: Callable[..., jax.Array], *arrays: jax.Array, name: str
) -> jax.Array:
    """A function of elements in float32."""
    n = arrays[0].size

    def kernel(*refs):
        *refs, result = refs
        element = pl.program_id(0) * _ELEMENTS + jnp.arange(_ELEMENTS)
        real = element < n if n % _ELEMENTS else None
        values = [
            triton.load(ref.at[element], mask=real).astype(jnp.float32) for ref in refs
        ]
        y = function(*values).astype(result.dtype)
        triton.store(result.at[element], y, mask=real)

    y = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(n, _ELEMENTS),),
        out_shape=jax.ShapeDtypeStruct((n,), arrays[0].dtype),
        compiler_params=triton.CompilerParams(num_warps=_WARPS),
        name=name,
    )(*(x.reshape(-1) for x in arrays))
    return y.reshape(arrays[0].shape)
