"""Multiply-accumulates of the convolutions and matrix products of a network.

They are counted in its trace, in float32 and in the forms for CPUs: for that no machine
leaves anything to cuDNN or adds tokens. Convolutions of videos count as defined. On a
GPU X3D counts 1.5 % more, where its channels are filled up.

>>> round(gmacs("x3d_xs"), 3)
0.605
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from leaps_jax.runtime import traces
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


def _products_of(module: nn.Module) -> list[tuple[int, int]]:
    """The multiply-accumulates of each product, and how many factors are no weights."""
    module = module.clone(dtype=None)  # type: ignore[call-arg]
    frames, size = module.frames, module.size  # type: ignore[attr-defined]
    video = jax.ShapeDtypeStruct((1, frames, size, size, 3), jnp.float32)

    def forward(video, variables):
        return module.apply(variables, video)

    found = traces.operations(
        forward,
        video,
        zoo.variable_shapes(module),
        platform="cpu",
        # no arithmetic but for its form, and one that each form does in another way
        whole=["expand_bias", "convolve"],
    )
    return [
        (each, sum(value.varies for value in operation.inputs))
        for operation in found
        if (each := _macs(operation))
    ]


def _macs(operation: traces.Operation) -> int:
    if operation.name not in ("convolve", "conv_general_dilated", "dot_general"):
        return 0
    (a, b), (result,) = operation.inputs, operation.outputs
    if operation.name == "convolve":
        return result.size * b.size // b.shape[-1]
    numbers = operation.params["dimension_numbers"]
    if operation.name == "dot_general":
        (contracted, _), _ = numbers
        return result.size * math.prod(a.shape[axis] for axis in contracted)
    return result.size * b.size // b.shape[numbers.rhs_spec[0]]
