"""The floor of a step: the least time in which a device could do it.

The roofline model (S. Williams, A. Waterman and D. Patterson, 2009): either arithmetic
or memory is the limit, and the other is hidden behind it.

>>> milliseconds(flops=4e12, moved=2e9, matmul=800e12, copy=4e12)
5.0
"""

from collections.abc import Iterable

from leaps_jax.runtime.traces import Operation, Value

#: Operations that no compiler merges with the next one of their kind.
_MOVING = {
    "conv_general_dilated",
    "dot_general",
    "dot_product_attention_bwd_wrapper",
    "dot_product_attention_fwd_wrapper",
    "fft",
    "ffi_call",
    "pallas_call",
    "scatter",
    "scatter-add",
    "select_and_scatter_add",
    "sort",
}
_REDUCING = ("reduce_", "arg", "cum")
_ELEMENTWISE = ("reduce_precision",)


def milliseconds(flops: float, moved: float, matmul: float, copy: float) -> float:
    """The floor of a step.

    Args:
      flops: floating-point operations of a step.
      moved: bytes that a step moves at least, from `bytes_moved`.
      matmul: FLOP/s of a large matrix product on the device.
      copy: bytes/s of a large copy, those read and those written.
    """
    return 1e3 * max(flops / matmul, moved / copy)


def bytes_moved(operations: Iterable[Operation]) -> int:
    """The bytes that the operations read and write at least.

    A convolution, a matrix product, an attention, a kernel or a Fourier transform reads
    each operand and writes its results once, a gather what it takes. All reductions of
    a tensor, and of what is computed from it element by element, read it once. The rest
    is free, since a compiler can merge it with these. What depends on constants alone
    is free, too: it is computed once.
    """
    moved = 0
    reduced: set[Value] = set()
    sources: dict[Value, frozenset[Value]] = {}  # of what is computed by element

    def source(values: Iterable[Value]) -> frozenset[Value]:
        of_each = (sources.get(v, frozenset([v])) for v in values if v.varies)
        return frozenset().union(*of_each)

    for operation in operations:
        if not any(value.varies for value in operation.inputs):
            continue
        name, times = operation.name, operation.times
        written = sum(value.nbytes for value in operation.outputs)
        if name in _MOVING or name.startswith("reduce_window"):
            operands = set(operation.inputs)
            moved += times * (sum(value.nbytes for value in operands) + written)
        elif name == "gather":
            moved += times * 2 * written
        elif name.startswith(_REDUCING) and name not in _ELEMENTWISE:
            largest = sum(value.nbytes for value in operation.inputs)
            for each in source(operation.inputs) - reduced:
                reduced.add(each)
                moved += times * min(each.nbytes, largest)
            moved += times * written
        else:
            sources |= dict.fromkeys(operation.outputs, source(operation.inputs))
    return moved
