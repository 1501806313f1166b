"""Multiply-accumulates of the convolutions and matrix products of a network.

They are counted in its trace, in float32: for that no machine leaves anything to cuDNN
or adds tokens. On a GPU X3D counts 1.5 % more, where its channels are filled up.

>>> round(gmacs("x3d_xs"), 3)
0.605
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from leaps_jax.zoo import build as zoo


@functools.cache
def gmacs(name: str, classes: int = 400) -> float:
    """Of a model of the zoo for one clip, in 1e9; papers call this GFLOPs."""
    module, _ = zoo.build(name, ("",) * classes)
    return macs(module) / 1e9


def macs(module: nn.Module) -> int:
    """Of a module of the zoo, for one clip of its frames and size."""
    return sum(macs for macs, _ in _products_of(module))


def macs_with_gradient(module: nn.Module) -> int:
    """`macs`, and those of the gradient of the clip with the weights constant.

    A product with weights has one more there. One of two tensors that depend on the
    clip, as attention has, has two more.
    """
    return sum(macs * (1 + varying) for macs, varying in _products_of(module))


Products = list[tuple[int, int]]  # multiply-accumulates, operands that depend on a clip


def _products_of(module: nn.Module) -> Products:
    module = module.clone(dtype=None)  # type: ignore[call-arg]
    frames, size = module.frames, module.size  # type: ignore[attr-defined]
    video = jax.ShapeDtypeStruct((1, frames, size, size, 3), jnp.float32)
    variables = zoo.variable_shapes(module)
    jaxpr = jax.make_jaxpr(module.apply)(variables, video).jaxpr
    products, _ = _products(jaxpr, [False] * (len(jaxpr.invars) - 1) + [True])
    return products


def _products(jaxpr: Any, varies: Sequence[bool]) -> tuple[Products, list[bool]]:
    """The convolutions and matrix products of a function.

    Args:
      jaxpr: of the function.
      varies: which of its inputs depend on the clip.

    Returns:
      Them, and which of the function's outputs depend on the clip.
    """
    known = dict(zip(jaxpr.invars, varies, strict=True))

    def depends(atom: Any) -> bool:
        return not isinstance(atom, core.Literal) and known.get(atom, False)

    products: Products = []
    for eqn in jaxpr.eqns:
        varying = [depends(atom) for atom in eqn.invars]
        if each := _macs(eqn):
            products.append((each, sum(varying)))
        after = [any(varying)] * len(eqn.outvars)
        for inside in _inside(eqn):
            # of a choice of a platform, the first input is the platform
            own = varying[len(varying) - len(inside.invars) :]
            found, after = _products(inside, own)
            products += found
        known |= zip(eqn.outvars, after, strict=True)
    return products, [depends(atom) for atom in jaxpr.outvars]


def _macs(eqn: Any) -> int:
    if eqn.primitive.name not in ("conv_general_dilated", "dot_general"):
        return 0
    a, b, result = (atom.aval for atom in (*eqn.invars, *eqn.outvars))
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = numbers
        return result.size * math.prod(a.shape[axis] for axis in contracted)
    return result.size * b.size // b.shape[numbers.rhs_spec[0]]


def _inside(eqn: Any) -> list[Any]:
    """The functions that an equation calls."""
    if eqn.params.get("name") == "expand_bias":
        return []  # no arithmetic but for its form
    values = jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)
    found = [getattr(v, "jaxpr", v) for v in values if _is_jaxpr(v)]
    # the last of those by platform is the definition; before it, forms for some
    return found[-1:] if eqn.params.get("branches_platforms") else found


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
