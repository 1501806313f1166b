"""Which form of an operation runs: the plain one, or one that a machine runs faster.

An operation has a plain form, its definition, and fast forms of the same values. All
that depends on the machine in this package is decided here.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax

try:
    from jax.experimental.pallas import triton as triton
except ImportError:  # a newer JAX, which removed what it calls deprecated today
    triton = None  # type: ignore[assignment]

AMPERE = 8.0
_COUNTED = 2**31  # elements that the integers of kernels tell apart

Form = Callable[..., Any]


def by_platform(
    plain: Form,
    *,
    gpu: Form | None = None,
    old_gpu: Form | None = None,
    cpu: Form | None = None,
) -> Form:
    """An operation of arrays that runs the form for the platform it is lowered for.

    Under a mesh of devices, as `parallel.map_over_devices` has one, the form for these
    is traced alone; elsewhere that for the accelerator of this process and that for
    CPUs, on which an array may be in any process. Kernels count elements in 32 bits:
    for a larger array a GPU runs the form for older ones.

    Args:
      plain: runs wherever no other form is given, and on TPUs.
      gpu: for NVIDIA GPUs since Ampere, with the Triton backend of Pallas.
      old_gpu: for older ones, such as the T4 of many a free notebook, and for a JAX
        that has no such backend.
      cpu: for CPUs.

    >>> by_platform(jax.numpy.sin, gpu=jax.numpy.cos)(0.0).item()
    0.0
    """
    on_cpu, on_accelerator, of_large = cpu or plain, plain, plain
    if compute_capability():
        if triton is None and compute_capability() >= AMPERE:
            _tell_what_is_missing()
        has_kernels = triton is not None and compute_capability() >= AMPERE
        of_large = old_gpu or plain
        on_accelerator = (gpu if has_kernels else None) or of_large
    device = jax.sharding.get_abstract_mesh().abstract_device
    platforms = {device.platform} if device else {jax.default_backend(), "cpu"}
    if platforms == {"cpu"}:
        return on_cpu

    def run(*arrays: Any) -> Any:
        counted = all(math.prod(shape) < _COUNTED for shape in _shapes(arrays))
        form = on_accelerator if counted else of_large
        if "cpu" not in platforms or form is on_cpu:
            return form(*arrays)
        return jax.lax.platform_dependent(*arrays, cpu=on_cpu, default=form)

    return run


def _shapes(arrays: Any) -> list[tuple[int, ...]]:
    return [jax.numpy.shape(array) for array in jax.tree.leaves(arrays)]


@functools.cache
def _tell_what_is_missing() -> None:
    warnings.warn(
        f"JAX {jax.__version__} has no Triton backend for Pallas, so plain and slower"
        " forms run on this GPU; install an older JAX for the kernels",
        stacklevel=2,
    )


def on_gpu() -> bool:
    """Whether arrays are on a GPU by default, for what changes their shapes."""
    return jax.default_backend() == "gpu"


def compute_capability() -> float:
    """The compute capability of the NVIDIA GPUs here, 0 where there are none."""
    told = getattr(jax.devices()[0], "compute_capability", "")
    return float(told) if told.replace(".", "").isdecimal() else 0.0
