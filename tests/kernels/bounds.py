"""Checks from its trace that a Pallas kernel stays within its arrays.

Where a kernel reads and writes depends on the numbers of its programs, on loop counters
and on constants, and not on the numbers that it computes with. So the integers and
booleans of its trace are computed for all programs at once, with as many bits as the
machine has, and everything else is unknown. `check` then finds

- an index that its mask admits and that is outside of its axis, each axis by itself;
- an element of a result that no program writes, or that is written twice;
- an index, a mask or a branch that is computed from data;
- a grid or an array that is too large for a GPU.

Integers are kept as sums of parts, each along axes of its own, since most indices are:
`row * c + column` of all programs has rows and columns, and need not be written out.
Likewise masks are conjunctions.

>>> from jax.experimental import pallas as pl
>>> def double(x_ref, y_ref):
...     y_ref[...] = 2 * x_ref[...]
>>> x = jax.ShapeDtypeStruct((8,), jnp.float32)
>>> call = pl.pallas_call(double, out_shape=x)
>>> [check(kernel) for kernel in kernels(jax.make_jaxpr(call)(x))]
[Report(faults=(), indices=16)]
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import writes
from jax.extend import core

_MOST = 2**20  # elements of an array that is written out
_MOST_PROGRAMS = (2**31 - 1, 2**16 - 1, 2**16 - 1)  # of CUDA, along each axis
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2")
_ACCESSES = {  # whether it writes, and what its arguments are
    "masked_load": (False, ("ref", "where", "mask", "other")),
    "masked_swap": (True, ("ref", "where", "value", "mask")),
    "get": (False, ("ref", "where")),
    "swap": (True, ("ref", "value", "where")),
}


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `check`.

    Attributes:
      faults: a line each.
      indices: how many elements all programs read and write.
    """

    faults: tuple[str, ...]
    indices: int


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A `pallas_call` of a trace.

    Attributes:
      eqn: the call, as traced.
      operands: of each input its values, where they are constants of the trace.
    """

    eqn: core.JaxprEqn
    operands: tuple[np.ndarray | None, ...]

    @property
    def name(self) -> str:
        return self.eqn.params["name"]

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self.eqn.params["grid_mapping"].grid)

    @functools.cached_property
    def key(self) -> tuple:
        """The same for calls that read and write at the same indices."""
        known = [None if x is None else (x.shape, x.tobytes()) for x in self.operands]
        shapes = [v.aval.str_short() for v in (*self.eqn.invars, *self.eqn.outvars)]
        text = str(self.eqn.params["jaxpr"])
        return self.name, self.grid, *known, *shapes, text


def kernels(traced: core.ClosedJaxpr) -> list[Kernel]:
    """Every `pallas_call` in a trace, also in loops and in branches."""
    found: list[Kernel] = []
    _walk(traced, [None] * len(traced.jaxpr.invars), found)
    return found


def _walk(
    closed: core.ClosedJaxpr, inputs: Sequence[Any], found: list[Kernel]
) -> list[Any]:
    """Adds the calls in a function. Its inputs are values of constants, or None."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= zip(jaxpr.constvars, map(_constant, closed.consts), strict=True)

    def value(atom: Any) -> Any:
        literal = isinstance(atom, core.Literal)
        return _constant(atom.val) if literal else known.get(atom)

    for eqn in jaxpr.eqns:
        inputs = [value(atom) for atom in eqn.invars]
        if eqn.primitive.name == "pallas_call":
            found.append(Kernel(eqn, tuple(inputs)))
            continue
        inner = _functions(eqn)
        for function in inner:
            n = len(function.jaxpr.invars)  # of a choice, what decides comes first
            changes = eqn.primitive.name in ("scan", "while")
            given = [None] * n if changes else inputs[len(inputs) - n :]
            outputs = _walk(function, given, found)
            if len(inner) == 1 and not changes:
                known |= zip(eqn.outvars, outputs, strict=True)
    return [value(atom) for atom in jaxpr.outvars]


def _functions(eqn: core.JaxprEqn) -> list[core.ClosedJaxpr]:
    kinds = (core.Jaxpr, core.ClosedJaxpr)
    values = jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: isinstance(x, kinds)
    )
    return [_closed(value) for value in values if isinstance(value, kinds)]


def _closed(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> core.ClosedJaxpr:
    closed = isinstance(jaxpr, core.ClosedJaxpr)  # as is every one of a newer JAX
    return jaxpr if closed else core.ClosedJaxpr(jaxpr, ())


def _constant(value: Any) -> np.ndarray | None:
    """An array if the value is of integers, which may be indices, else None."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        dtype = np.result_type(value)
    return np.asarray(value) if np.issubdtype(dtype, np.integer) else None


class _SplitError(Exception):
    """An array over this axis of the grid is too large: check a part at a time."""

    def __init__(self, axis: int):
        super().__init__(f"axis {axis}")
        self.axis = axis


class _Part:
    """An array over axes of programs and of elements, of length 1 where constant."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.axes = frozenset(i for i, n in enumerate(array.shape) if n > 1)

    @functools.cached_property
    def least(self) -> int:
        return int(self.array.min())

    @functools.cached_property
    def most(self) -> int:
        return int(self.array.max())

    def reshaped(self, shape: Sequence[int]) -> "_Part":
        return _Part(self.array.reshape(shape))


@dataclasses.dataclass(frozen=True, eq=False)
class _Sum:
    """Integers, as the sum of a constant and of parts that share no axis."""

    constant: int
    parts: tuple[_Part, ...] = ()

    @property
    def least(self) -> int:
        return self.constant + sum(part.least for part in self.parts)

    @property
    def most(self) -> int:
        return self.constant + sum(part.most for part in self.parts)


@dataclasses.dataclass(frozen=True, eq=False)
class _All:
    """A mask, true where every part is true."""

    parts: tuple[_Part, ...] = ()


class _Unknown:
    """A value that depends on the data of arrays, and is not evaluated."""


_UNKNOWN = _Unknown()
_NEVER = False


@dataclasses.dataclass(frozen=True)
class _Ref:
    """A reference to an array of the kernel: an input, or then a result."""

    number: int


@dataclasses.dataclass(frozen=True)
class _Slice:
    """Stands for the slice of Pallas."""

    start: int
    size: int
    stride: int


@dataclasses.dataclass(frozen=True)
class _Whole:
    """Stands for the index of Pallas that reads a whole block."""

    indices: tuple[_Slice, ...]
    int_indexer_shape: tuple[int, ...] = ()


def _arguments(eqn: core.JaxprEqn) -> tuple[bool, dict[str, Any]]:
    """Whether an equation stores (or loads), and its arguments by name."""
    stores, names = _ACCESSES[eqn.primitive.name]
    if (tree := eqn.params.get("args_tree")) is not None:
        given = tree.unflatten(eqn.invars)
    else:  # indices come last
        n = len(names) - 1
        given = (*eqn.invars[:n], eqn.params["tree"].unflatten(eqn.invars[n:]))
    return stores, dict(zip(names, given, strict=True))


class _Evaluation:
    """All loads and stores of some programs of a kernel.

    Args:
      kernel: of which they are.
      box: the programs, a range along each axis of the grid.
    """

    def __init__(self, kernel: Kernel, box: Sequence[range]):
        self.kernel, self.box = kernel, tuple(box)
        self.faults: list[str] = []
        self.indices_checked = 0
        self.written: dict[int, list[writes.Term]] = collections.defaultdict(list)
        self.known: dict[tuple, tuple] = {}  # results by operands
        params = kernel.eqn.params
        if params["input_output_aliases"]:
            raise NotImplementedError("input_output_aliases")
        mapping = params["grid_mapping"]
        self.ids = [a for a in range(len(self.box)) if a not in mapping.vmapped_dims]
        self.blocks = [self._block(block) for block in mapping.block_mappings]
        avals = [v.aval for v in (*kernel.eqn.invars, *kernel.eqn.outvars)]
        self.arrays = avals
        refs = [_Ref(number) for number in range(len(self.arrays))]
        jaxpr = params["jaxpr"]
        if len(refs) != len(jaxpr.invars):
            raise NotImplementedError("arguments that are no arrays")
        _Frame(self, _closed(jaxpr), refs).run()

    def program(self, axis: int) -> _Sum:
        shape = [1] * len(self.box)
        shape[axis] = len(self.box[axis])
        return _sum(0, [_Part(np.array(self.box[axis], np.int64).reshape(shape))])

    def _block(self, block: Any) -> list[tuple[_Sum, int | None]]:
        """The start and length of a block along each axis of its array."""
        programs = [self.program(axis) for axis in range(len(self.box))]
        index_map = block.index_map_jaxpr
        frame = _Frame(self, index_map, programs)
        found = []
        for atom, of in zip(index_map.jaxpr.outvars, block.block_shape, strict=True):
            start, kind = frame.value(atom), type(of).__name__
            if kind not in ("Blocked", "Squeezed") or not isinstance(start, _Sum):
                raise NotImplementedError(f"a block of kind {kind}")
            length = of.block_size if kind == "Blocked" else None
            found.append((_scaled(start, length or 1), length))
        return found

    def spread(self, shape: Sequence[int]) -> None:
        """Raises _SplitError if an array of this shape would be too large."""
        programs = shape[: len(self.box)]
        if math.prod(shape) > _MOST and max(programs, default=1) > 1:
            raise _SplitError(int(np.argmax(programs)))

    def access(self, frame: "_Frame", eqn: core.JaxprEqn) -> None:
        """Checks a load or a store, and adds its faults."""
        stores, given = _arguments(eqn)
        number = frame.value(given["ref"]).number
        shape, inputs = self.arrays[number].shape, len(self.kernel.operands)
        what = f"{'writes' if stores else 'reads'} argument {number}"
        if stores == (number < inputs):
            self.faults.append(
                f"{what}, which is {'an input' if stores else 'a result'}"
            )
        indices, lanes = self.indices(frame, number, given["where"])
        mask = given.get("mask")
        mask = _All() if mask is None else frame.value(mask)
        if mask is _UNKNOWN:
            self.faults.append(f"{what} where data says so")
            mask = _All()
        if mask is _NEVER:
            return
        masks = self.lifted(mask.parts, len(lanes))
        if _UNKNOWN in indices:
            self.faults.append(f"{what} at an index that data says")
            return
        count = self._count(masks, lanes)
        if not count:
            return
        self.indices_checked += count
        inside = iter(indices)
        places = []
        for axis, (start, length) in enumerate(self.blocks[number]):
            start = _sum(start.constant, self.lifted(start.parts, len(lanes)))
            index = _Sum(0) if length is None else next(inside)
            if length is not None:
                self._within(f"{what}, axis {axis}", index, length, masks)
            if length != shape[axis] or start.constant or start.parts:
                place = self.add(start, index)
                self._within(f"{what}, axis {axis}", place, shape[axis], masks)
            places.append(self.add(start, index))
        if stores and not self.faults:
            self.written[number].append(self._term(places, masks, shape, lanes))

    def indices(
        self, frame: "_Frame", number: int, where: Sequence[Any]
    ) -> tuple[list[Any], list[int]]:
        """An index along each axis of a block, and the lengths of the axes of lanes.

        Those of arrays of indices come where the first of them is, if they are next to
        each other, and those of slices before and after.
        """
        lengths = [n for _, n in self.blocks[number] if n is not None]
        if len(where) > 1 or not all(hasattr(each, "indices") for each in where):
            raise NotImplementedError(f"argument {number} through {where}")
        if not where:
            where = [_Whole(tuple(_Slice(0, n, 1) for n in lengths))]
        along, of_arrays = where[0].indices, list(where[0].int_indexer_shape)
        sliced = [hasattr(index, "stride") for index in along]
        own = [n for n, is_slice in enumerate(sliced) if not is_slice]
        adjacent = bool(own) and own[-1] - own[0] + 1 == len(own)
        before = own[0] if adjacent else 0
        sizes = [index.size for index in along if hasattr(index, "stride")]
        lanes = sizes[:before] + of_arrays + sizes[before:]
        programs, after = len(self.box), len(sizes) - before

        def shaped(part: _Part) -> _Part:
            of = part.array.shape
            room = [1] * before, of[programs:], [1] * after
            return part.reshaped((*of[:programs], *itertools.chain(*room)))

        free = iter([*range(before), *range(before + len(of_arrays), len(lanes))])
        found: list[Any] = []
        for index, is_slice in zip(along, sliced, strict=True):
            atom = index.start if is_slice else index
            traced = isinstance(atom, core.Var | core.Literal)
            value = frame.value(atom) if traced else _Sum(int(atom))
            lane = next(free) if is_slice else None
            if value is not _UNKNOWN:
                parts = self.lifted(value.parts, len(of_arrays))
                value = _sum(value.constant, [shaped(part) for part in parts])
                if lane is not None:
                    steps = self._lane(lane, index.size, index.stride, len(lanes))
                    value = self.add(value, steps)
            found.append(value)
        return found, lanes

    def _lane(self, lane: int, size: int, stride: int, lanes: int) -> _Sum:
        """The offsets of a slice from its start, along one axis of elements."""
        shape = [1] * (len(self.box) + lanes)
        shape[len(self.box) + lane] = size
        steps = np.arange(size, dtype=np.int64) * stride
        return _sum(0, [_Part(steps.reshape(shape))])

    def lifted(self, parts: Sequence[_Part], lanes: int) -> list[_Part]:
        """Parts with axes of length 1 appended, up to this many of elements."""
        rank = len(self.box) + lanes
        return [
            part.reshaped((*part.array.shape, *[1] * (rank - part.array.ndim)))
            if part.array.ndim < rank
            else part
            for part in parts
        ]

    def _count(self, masks: Sequence[_Part], lanes: Sequence[int]) -> int:
        shape = [*map(len, self.box), *lanes]
        count = math.prod(n for a, n in enumerate(shape) if not _covered(a, masks))
        for group in _independent(masks):
            count *= int(np.count_nonzero(self._conjunction(group)))
        return count

    def _conjunction(self, parts: Sequence[_Part]) -> np.ndarray:
        arrays = [part.array for part in parts]
        self.spread(np.broadcast_shapes(*(x.shape for x in arrays)))
        return functools.reduce(np.logical_and, arrays)

    def _within(
        self, what: str, index: _Sum, size: int, masks: Sequence[_Part]
    ) -> None:
        least, most = index.least, index.most
        if least < 0 or most >= size:
            least = most = index.constant
            for group in _independent([*index.parts, *masks]):
                parts = [part for part in group if part in index.parts]
                admitted = [part for part in group if part not in index.parts]
                values = self.total(_sum(0, parts))
                if admitted:
                    keep = self._conjunction(admitted)
                    shape = np.broadcast_shapes(values.shape, keep.shape)
                    values = np.broadcast_to(values, shape)
                    values = values[np.broadcast_to(keep, shape)]
                least, most = least + int(values.min()), most + int(values.max())
        if least < 0 or most >= size:
            self.faults.append(f"{what}: indices {least} to {most} of {size}")

    def _term(
        self,
        places: Sequence[_Sum],
        masks: Sequence[_Part],
        shape: Sequence[int],
        lanes: Sequence[int],
    ) -> writes.Term:
        owner = {id(p): d for d, place in enumerate(places) for p in place.parts}
        items = [part for place in places for part in place.parts]
        every = [*map(len, self.box), *lanes]
        covering = [*items, *masks]
        times = math.prod(n for a, n in enumerate(every) if not _covered(a, covering))
        groups: list[dict[int, np.ndarray]] = []
        for group in _independent(covering):
            over = np.broadcast_shapes(*(part.array.shape for part in group))
            self.spread(over)
            admitted = [part for part in group if id(part) not in owner]
            keep = np.ones(over, bool)
            for part in admitted:
                keep &= part.array
            values = {}
            for part in group:
                if (axis := owner.get(id(part))) is not None:
                    known = values.get(axis, np.zeros(1, np.int64))
                    values[axis] = known + np.broadcast_to(part.array, over)[keep]
            if values:
                groups.append(values)
            else:
                times *= int(np.count_nonzero(keep))
        return writes.term(shape, [place.constant for place in places], groups, times)

    # Arithmetic.

    def total(self, value: _Sum) -> np.ndarray:
        """The sum as one array."""
        arrays = [part.array for part in value.parts]
        if not arrays:
            return np.array(value.constant)
        self.spread(np.broadcast_shapes(*(x.shape for x in arrays)))
        return functools.reduce(np.add, arrays) + value.constant

    def add(self, a: _Sum, b: _Sum) -> _Sum:
        parts = []
        for group in _independent([*a.parts, *b.parts]):
            parts.append(group[0] if len(group) == 1 else _Part(self._added(group)))
        return _sum(a.constant + b.constant, parts)

    def _added(self, parts: Sequence[_Part]) -> np.ndarray:
        self.spread(np.broadcast_shapes(*(part.array.shape for part in parts)))
        return functools.reduce(np.add, [part.array for part in parts])

    def elementwise(self, name: str, *of: Any) -> Any:
        """An operation of integers and booleans, `_UNKNOWN` if it is none of these."""
        if name == "and":
            return self._both(*of)
        if _UNKNOWN in of:
            return _UNKNOWN
        if name == "not" and of[0] is _NEVER:
            return _All()
        if all(isinstance(x, _Sum) for x in of):
            if name in _COMPARISONS:
                return self._compared(name, *of)
            if name == "add":
                return self.add(*of)
            if name == "sub":
                return self.add(of[0], _scaled(of[1], -1))
            if name == "neg":
                return _scaled(of[0], -1)
            if name == "mul" and not (of[0].parts and of[1].parts):
                a, b = of if not of[1].parts else of[::-1]
                return _scaled(a, b.constant)
            if name in ("div", "rem") and not of[1].parts and of[1].constant > 0:
                return self._divided(name, of[0], of[1].constant)
        function = _FUNCTIONS.get(name)
        if function is None:
            return _UNKNOWN
        arrays = [self.written_out(x) for x in of]
        self.spread(np.broadcast_shapes(*(x.shape for x in arrays)))
        result = function(*arrays)
        return _boolean(result) if result.dtype == bool else _sum(0, [_Part(result)])

    def written_out(self, value: Any) -> np.ndarray:
        if isinstance(value, _Sum):
            return self.total(value)
        if value is _NEVER:
            return np.array(False)
        return self._conjunction(value.parts) if value.parts else np.array(True)

    def _both(self, a: Any, b: Any) -> Any:
        if a is _NEVER or b is _NEVER:
            return _NEVER
        if isinstance(a, _All) and isinstance(b, _All):
            new = [part for part in b.parts if part not in a.parts]
            return _All((*a.parts, *new))
        if _UNKNOWN in (a, b):
            return _UNKNOWN
        arrays = self.written_out(a), self.written_out(b)
        return _sum(0, [_Part(np.bitwise_and(*arrays))])

    def _compared(self, name: str, a: _Sum, b: _Sum) -> Any:
        apart = self.add(a, _scaled(b, -1))
        least, most = apart.least, apart.most
        always, never = {
            "lt": (most < 0, least >= 0),
            "le": (most <= 0, least > 0),
            "gt": (least > 0, most <= 0),
            "ge": (least >= 0, most < 0),
            "eq": (least == most == 0, least > 0 or most < 0),
            "ne": (least > 0 or most < 0, least == most == 0),
        }[name]
        if always or never:
            return _All() if always else _NEVER
        return _boolean(_COMPARISONS[name](self.total(apart), 0))

    def _divided(self, name: str, a: _Sum, by: int) -> _Sum:
        """Truncated, as a machine does; what `by` divides is divided by itself."""
        if by == 1:
            return a if name == "div" else _Sum(0)
        whole = [part for part in a.parts if not (part.array % by).any()]
        rest = _sum(a.constant % by, [part for part in a.parts if part not in whole])
        if a.least >= 0 and rest.least >= 0:
            quotients = [_Part(part.array // by) for part in whole]
            multiple = _sum(a.constant // by, quotients)
            if rest.most < by:
                return multiple if name == "div" else rest
            values = self.total(rest)
            if name == "rem":
                return _sum(0, [_Part(values % by)])
            return self.add(multiple, _sum(0, [_Part(values // by)]))
        return _sum(0, [_Part(_FUNCTIONS[name](self.total(a), np.int64(by)))])

    def wrapped(self, value: Any, dtype: Any) -> Any:
        """A sum as an integer of a machine has it."""
        if not isinstance(value, _Sum) or not np.issubdtype(dtype, np.integer):
            return value
        limits = np.iinfo(dtype)
        if limits.min <= value.least and value.most <= limits.max:
            return value
        wrapped = self.total(value).astype(dtype).astype(np.int64)
        return _sum(0, [_Part(wrapped)])


def _sum(constant: int, parts: Sequence[_Part]) -> _Sum:
    fixed = [part for part in parts if not part.axes]
    constant += sum(part.least for part in fixed)
    return _Sum(constant, tuple(part for part in parts if part.axes))


def _scaled(value: _Sum, by: int) -> _Sum:
    if by == 1:
        return value
    if by == 0:
        return _Sum(0)
    return _Sum(value.constant * by, tuple(_Part(p.array * by) for p in value.parts))


def _boolean(array: np.ndarray) -> Any:
    if array.all():
        return _All()
    return _All((_Part(array),)) if array.any() else _NEVER


def _covered(axis: int, parts: Sequence[_Part]) -> bool:
    return any(axis in part.axes for part in parts)


def _independent(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Parts in groups that share no axis."""
    groups: list[tuple[frozenset[int], list[_Part]]] = []
    for part in parts:
        axes, members = part.axes, [part]
        apart = []
        for group in groups:
            if group[0] & axes:
                axes, members = axes | group[0], [*group[1], *members]
            else:
                apart.append(group)
        groups = [*apart, (axes, members)]
    return [members for _, members in groups]


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


_COMPARISONS: dict[str, Callable[..., np.ndarray]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}
_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    **_COMPARISONS,
    "mul": np.multiply,
    "div": _quotient,
    "rem": lambda a, b: a - b * _quotient(a, b),
    "max": np.maximum,
    "min": np.minimum,
    "abs": np.abs,
    "sign": np.sign,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shift_left": np.left_shift,
    "shift_right_arithmetic": np.right_shift,
    "select_n": lambda which, *of: np.where(which, of[1], of[0]),
}
_RESHAPES = ("reshape", "squeeze", "expand_dims")


class _Frame:
    """A function of a trace, whose values are computed when they are asked for.

    Args:
      evaluation: of which programs.
      closed: the function.
      inputs: values, or functions that return them.
    """

    def __init__(
        self, evaluation: _Evaluation, closed: core.ClosedJaxpr, inputs: Sequence[Any]
    ):
        self.evaluation, self.jaxpr = evaluation, closed.jaxpr
        self.values = dict(zip(self.jaxpr.invars, inputs, strict=True))
        for variable, constant in zip(self.jaxpr.constvars, closed.consts, strict=True):
            self.values[variable] = self._literal(constant)
        self.makers = {v: eqn for eqn in self.jaxpr.eqns for v in eqn.outvars}

    def run(self) -> None:
        """Follows everything that reads or writes."""
        for eqn in self.jaxpr.eqns:
            if any(_is_reference(v) for v in eqn.invars):
                self._follow(eqn)

    def value(self, atom: Any) -> Any:
        if isinstance(atom, core.Literal):
            return self._literal(atom.val)
        if atom not in self.values:
            self._make(self.makers[atom])
        if callable(value := self.values[atom]):
            value = self.values[atom] = value()
        return value

    def later(self, atom: Any) -> Callable[[], Any]:
        return lambda: self.value(atom)

    def _literal(self, value: Any) -> Any:
        if np.ndim(value):
            return _UNKNOWN
        if isinstance(value, bool | np.bool_):
            return _All() if value else _NEVER
        return _Sum(int(value)) if _constant(value) is not None else _UNKNOWN

    def _set(self, eqn: core.JaxprEqn, values: Sequence[Any]) -> None:
        self.values |= zip(eqn.outvars, values, strict=True)

    def _follow(self, eqn: core.JaxprEqn) -> None:
        if eqn.primitive.name in _ACCESSES:
            self.evaluation.access(self, eqn)
        elif eqn.primitive.name in (*_CALLS, "scan", "while", "cond"):
            self._make(eqn)
        else:
            raise NotImplementedError(eqn.primitive.name)

    def _make(self, eqn: core.JaxprEqn) -> None:
        name = eqn.primitive.name
        if name in _ACCESSES:
            self._set(eqn, [self._loaded(eqn)])
        elif name in _CALLS:
            [function, *_] = _functions(eqn)
            self._set(eqn, self._called(function, map(self.later, eqn.invars)))
        elif name == "scan":
            self._set(eqn, self._scanned(eqn))
        elif name == "while":
            self._set(eqn, self._repeated(eqn))
        elif name == "cond":
            which = self._uniform(eqn.invars[0])
            branches = eqn.params["branches"]
            if which is None:
                self._set(eqn, [_UNKNOWN] * len(eqn.outvars))
                return
            branch = branches[min(max(which, 0), len(branches) - 1)]
            self._set(eqn, self._called(branch, map(self.later, eqn.invars[1:])))
        elif len(eqn.outvars) == 1:
            self._set(eqn, [self._operation(eqn)])
        else:
            self._set(eqn, [_UNKNOWN] * len(eqn.outvars))

    def _called(
        self, function: core.ClosedJaxpr, inputs: Iterator[Any] | Sequence[Any]
    ) -> list[Any]:
        frame = _Frame(self.evaluation, function, list(inputs))
        frame.run()
        return [frame.later(atom) for atom in frame.jaxpr.outvars]

    def _scanned(self, eqn: core.JaxprEqn) -> list[Any]:
        body, carried = eqn.params["jaxpr"], len(eqn.outvars)
        outer, inner = (*eqn.invars, *eqn.outvars), body.jaxpr
        if [len(v.aval.shape) for v in outer] != [
            len(v.aval.shape) for v in (*inner.invars, *inner.outvars)
        ]:
            raise NotImplementedError("a scan over an array")
        constants = len(eqn.invars) - carried
        inputs = [self.later(atom) for atom in eqn.invars]
        fixed, carry = inputs[:constants], inputs[constants:]
        for _ in range(eqn.params["length"]):
            carry = self._turned(body, fixed, carry)
        return carry

    def _repeated(self, eqn: core.JaxprEqn) -> list[Any]:
        params = eqn.params
        inputs = [self.later(atom) for atom in eqn.invars]
        of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
        test, fixed = inputs[:of_test], inputs[of_test : of_test + of_body]
        carry = inputs[of_test + of_body :]
        while True:
            closed = params["cond_jaxpr"]
            frame = _Frame(self.evaluation, closed, [*test, *carry])
            goes_on = frame._uniform(closed.jaxpr.outvars[0])
            if goes_on is None:
                return [_UNKNOWN] * len(carry)
            if not goes_on:
                return carry
            carry = self._turned(params["body_jaxpr"], fixed, carry)

    def _turned(
        self, body: core.ClosedJaxpr, fixed: Sequence[Any], carry: Sequence[Any]
    ) -> list[Any]:
        """One turn of a loop; its counters are computed, else they would pile up."""
        after = self._called(body, [*fixed, *carry])
        return [
            value() if _is_integer(atom.aval) else value
            for atom, value in zip(body.jaxpr.outvars, after, strict=True)
        ]

    def _uniform(self, atom: Any) -> int | None:
        """What decides on a branch, of all these programs; None if it is data."""
        value = self.value(atom)
        if value is _UNKNOWN:
            self.evaluation.faults.append("a branch depends on data")
            return None
        for part in getattr(value, "parts", ()):
            raise _SplitError(min(part.axes))
        if isinstance(value, _Sum):
            return value.constant
        return int(value is not _NEVER)

    def _loaded(self, eqn: core.JaxprEqn) -> Any:
        """Integers of an input that is a constant of the trace."""
        evaluation, (stores, given) = self.evaluation, _arguments(eqn)
        number = self.value(given["ref"]).number
        operands, blocks = evaluation.kernel.operands, evaluation.blocks[number]
        known = operands[number] if number < len(operands) else None
        moves = any(start.parts or start.constant for start, _ in blocks)
        if stores or known is None or moves or given.get("mask") is not None:
            return _UNKNOWN
        indices, _ = evaluation.indices(self, number, given["where"])
        if _UNKNOWN in indices:
            return _UNKNOWN
        places = [  # those outside are faults of the access
            np.clip(evaluation.total(index), 0, n - 1)
            for index, n in zip(indices, known.shape, strict=True)
        ]
        return _sum(0, [_Part(known[tuple(places)].astype(np.int64))])

    def _operation(self, eqn: core.JaxprEqn) -> Any:
        name, params, aval = eqn.primitive.name, eqn.params, eqn.outvars[0].aval
        evaluation, programs = self.evaluation, len(self.evaluation.box)
        if not _is_integer(aval) and aval.dtype != bool:
            return _UNKNOWN
        if name == "program_id":
            return evaluation.program(evaluation.ids[params["axis"]])
        if name == "num_programs":
            return _Sum(evaluation.kernel.grid[evaluation.ids[params["axis"]]])
        if name == "iota":
            shape = [1] * (programs + len(aval.shape))
            shape[programs + params["dimension"]] = -1
            steps = np.arange(aval.shape[params["dimension"]], dtype=np.int64)
            return _sum(0, [_Part(steps.reshape(shape))])
        inputs = [self.value(atom) for atom in eqn.invars]
        kind = tuple(str(params[k]) for k in ("broadcast_dimensions",) if k in params)
        operands = [
            (x.constant,) if isinstance(x, _Sum) and not x.parts else id(x)
            for x in inputs
        ]
        key = name, kind, aval.shape, aval.dtype, *operands
        if key not in evaluation.known:
            value = self._computed(eqn, inputs, aval)
            value = evaluation.wrapped(value, aval.dtype)
            evaluation.known[key] = value, inputs  # whose addresses are then theirs
        return evaluation.known[key][0]

    def _computed(self, eqn: core.JaxprEqn, inputs: list[Any], aval: Any) -> Any:
        name, params = eqn.primitive.name, eqn.params
        evaluation, programs = self.evaluation, len(self.evaluation.box)
        if name in ("broadcast_in_dim", "broadcast_to", *_RESHAPES):
            own = eqn.invars[0].aval.shape

            def shaped(part: _Part) -> _Part:
                of = part.array.shape
                if name == "broadcast_in_dim":
                    lanes = [1] * len(aval.shape)
                    for n, axis in zip(
                        of[programs:], params["broadcast_dimensions"], strict=True
                    ):
                        lanes[axis] = n
                elif name == "broadcast_to":
                    lanes = [*[1] * (len(aval.shape) - len(own)), *of[programs:]]
                else:
                    lanes = _matched(own, of[programs:], aval.shape)
                return part.reshaped((*of[:programs], *lanes))

            return _mapped(shaped, inputs[0])
        if name in ("convert_element_type", "copy", "stop_gradient", "multiple_of"):
            [value, *_] = inputs
            if isinstance(value, _All) or value is _NEVER:
                if aval.dtype == bool:
                    return value
                array = evaluation.written_out(value).astype(np.int64)
                return _sum(0, [_Part(array)]) if array.ndim else _Sum(int(array))
            return value if _is_integer(aval) else _UNKNOWN
        lanes = len(aval.shape)

        def lifted(value: Any) -> Any:
            parts = evaluation.lifted(getattr(value, "parts", ()), lanes)
            if isinstance(value, _Sum):
                return _Sum(value.constant, tuple(parts))
            return _All(tuple(parts)) if isinstance(value, _All) else value

        return evaluation.elementwise(name, *map(lifted, inputs))


def _mapped(function: Callable[[_Part], _Part], value: Any) -> Any:
    if isinstance(value, _Sum):
        return _Sum(value.constant, tuple(map(function, value.parts)))
    return _All(tuple(map(function, value.parts))) if isinstance(value, _All) else value


def _matched(
    before: Sequence[int], stored: Sequence[int], after: Sequence[int]
) -> list[int]:
    """The stored lengths of axes, with axes of length 1 added or removed."""
    if [n for n in before if n > 1] != [n for n in after if n > 1]:
        raise NotImplementedError(f"{before} reshaped to {after}")
    kept = iter([s for n, s in zip(before, stored, strict=True) if n > 1])
    return [next(kept) if n > 1 else 1 for n in after]


def _is_reference(atom: Any) -> bool:
    return hasattr(atom.aval, "inner_aval")


def _is_integer(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.integer)


def check(kernel: Kernel) -> Report:
    """Looks for what the module's docstring lists."""
    results = range(len(kernel.operands), len(kernel.operands) + len(_results(kernel)))
    faults, indices = [], 0
    terms: dict[int, list[writes.Term]] = {number: [] for number in results}
    for axis, (n, most) in enumerate(zip(kernel.grid, _MOST_PROGRAMS, strict=False)):
        if n > most:
            faults.append(f"{n} programs along axis {axis}, of {most}")
    for aval in (v.aval for v in (*kernel.eqn.invars, *kernel.eqn.outvars)):
        # Triton multiplies by strides in 32 bits below 2**32 bytes
        if aval.size > 2**31 and aval.size * aval.dtype.itemsize <= 2**32:
            faults.append(f"{aval.str_short()}: its offsets wrap around")
    waiting = [tuple(range(n) for n in kernel.grid)] if math.prod(kernel.grid) else []
    while waiting:
        box = waiting.pop()
        try:
            evaluation = _Evaluation(kernel, box)
        except _SplitError as error:
            programs = box[error.axis]
            half = len(programs) // 2
            for part in (programs[half:], programs[:half]):
                waiting.append((*box[: error.axis], part, *box[error.axis + 1 :]))
            continue
        faults += evaluation.faults
        indices += evaluation.indices_checked
        for number, found in evaluation.written.items():
            shape = evaluation.arrays[number].shape
            terms[number] = writes.added_up([*terms[number], *found], shape)
    for number, found in terms.items():
        if not faults:  # else not all that is written is in them
            shape = _results(kernel)[number - results[0]].shape
            lines = writes.faults(found, shape)
            faults += [f"argument {number}: {line}" for line in lines]
    return Report(tuple(dict.fromkeys(faults)), indices)


def _results(kernel: Kernel) -> list[Any]:
    return [v.aval for v in kernel.eqn.outvars]
