"""Padding to the multiples of eight that GPUs multiply matrices by.

On other machines nothing is padded. tests/models/test_families.py holds padded
networks against those that they stand for.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from leaps_jax.kernels import attention, dispatch


def pad_tokens(x: jax.Array, dtype: Any) -> jax.Array:
    """(..., n, c) with tokens of zeros after its own.

    cuDNN's attention wants an even number of them, and XLA pads the rows of every
    matrix product.

    Args:
      x: (..., n, c).
      dtype: of the attention that follows; nothing is padded where it is not cuDNN's.
    """
    if not attention.cudnn_takes(jnp.zeros(0, dtype), None):
        return x
    return jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (0, -x.shape[-2] % 8), (0, 0)])


def channel_padding(channels: int) -> int:
    """How many channels of zeros a GPU wants after so many of a feature."""
    return -channels % 8 if dispatch.on_gpu() else 0


def pad_parameters(module: Any, channels: int, padding: int) -> Any:
    """A module class whose parameters have zeros after their own.

    Args:
      module: of Flax, to be made for `channels + padding` channels.
      channels: of the parameters that it is given: every axis of this length is padded.
      padding: channels of zeros.
    """

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, padding if n == channels else 0) for n in x.shape])

    return nn.map_variables(
        module, ("params", "batch_stats"), functools.partial(jax.tree.map, pad)
    )
