"""How new the GPUs are that a form of an operation is for.

Triton makes kernels for Ampere and newer, and cuDNN has attention there. What is older,
such as the T4 of many a free notebook, runs XLA's form of the same operation.
"""

from collections.abc import Callable
from typing import TypeVar

import jax

AMPERE = 8.0

Form = TypeVar("Form", bound=Callable)


def generation() -> float:
    """The compute capability of the NVIDIA GPUs here, 0 where there are none."""
    told = getattr(jax.devices()[0], "compute_capability", "")
    return float(told) if told.replace(".", "").isdecimal() else 0.0


def kernel_or(otherwise: Form, kernel: Form) -> Form:
    """The form of an operation for `cuda`, decided while tracing.

    >>> kernel_or(max, kernel=min) is min  # there is no older GPU here
    True
    """
    return otherwise if 0 < generation() < AMPERE else kernel
