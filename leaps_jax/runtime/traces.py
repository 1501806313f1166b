"""The operations of a traced function, those inside of its calls too.

>>> import jax.numpy as jnp
>>> doubled = jax.jit(lambda x: 2 * x)
>>> x, w = jax.ShapeDtypeStruct((2, 3), "float32"), jnp.ones((3, 4))
>>> for operation in operations(lambda x, w: doubled(x) @ w, x, w):
...     print(operation.name, [value.varies for value in operation.inputs])
mul [False, True]
dot_general [True, False]
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

_CALLS = ("jit", "pjit")  # of functions with names
# Operations whose function is of one block or of two elements, no call.
_WHOLE = ("pallas_call", "scatter", "reduce", "select_and")


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array of a trace.

    Attributes:
      shape: of the array.
      itemsize: bytes of an element.
      varies: whether it depends on the first argument of the function.
    """

    shape: tuple[int, ...]
    itemsize: int
    varies: bool

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the array."""
        return self.size * self.itemsize


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a trace.

    Attributes:
      name: of the primitive.
      params: of the primitive.
      inputs: what it reads.
      outputs: what it makes.
      times: how often it runs, in a loop.
    """

    name: str
    params: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    times: int


def operations(
    function: Callable,
    varying: Any,
    *constants: Any,
    platform: str | None = None,
    axes: Sequence[tuple[str, int]] = (),
    whole: Sequence[str] = (),
) -> list[Operation]:
    """The operations of a function in order, without those that no output needs.

    Args:
      function: of trees.
      varying: a tree of arrays or their shapes, its first argument.
      constants: likewise, the other arguments.
      platform: of whose form to look at, where an operation has several
        (`jax.lax.platform_dependent`), such as "cuda"; the default form if None.
      axes: names and sizes of the axes that the function is mapped over.
      whole: names of functions, compiled by `jax.jit`, that are one operation each.
    """
    traced = jax.make_jaxpr(function, axis_env=list(axes))(varying, *constants)
    first = len(jax.tree.leaves(varying))
    inputs = [
        _value(variable, number < first)
        for number, variable in enumerate(traced.jaxpr.invars)
    ]
    walk = _Walk(platform, frozenset(whole))
    outputs = walk.through(traced, inputs, 1)
    return _live(walk.found, {*outputs, *walk.results})


def _live(found: Sequence[Operation], needed: set[Value]) -> list[Operation]:
    live = []
    for operation in reversed(found):
        if not needed.isdisjoint(operation.outputs):
            live.append(operation)
            needed |= set(operation.inputs)
    return live[::-1]


class _Walk:
    """Gathers operations in `found`, and what loops and choices make in `results`."""

    def __init__(self, platform: str | None, whole: frozenset[str]):
        self.platform, self.whole = platform, whole
        self.found: list[Operation] = []
        self.results: set[Value] = set()

    def through(
        self, closed: core.ClosedJaxpr, inputs: Sequence[Value], times: int
    ) -> list[Value]:
        """Adds a function of these values, and returns its outputs."""
        jaxpr = closed.jaxpr
        known = dict(zip(jaxpr.invars, inputs, strict=True))
        known |= {variable: _value(variable, False) for variable in jaxpr.constvars}

        def value(atom: Any) -> Value:
            literal = isinstance(atom, core.Literal)
            return _value(atom, False) if literal else known[atom]

        for eqn in jaxpr.eqns:
            inputs = [value(atom) for atom in eqn.invars]
            known |= zip(eqn.outvars, self._equation(eqn, inputs, times), strict=True)
        return [value(atom) for atom in jaxpr.outvars]

    def _equation(
        self, eqn: core.JaxprEqn, inputs: list[Value], times: int
    ) -> list[Value]:
        name = eqn.primitive.name
        functions = self._functions(eqn)
        times *= eqn.params.get("length", 1) if name == "scan" else 1
        results = [  # of a choice, the first input is what decides
            self.through(
                function, inputs[len(inputs) - len(function.jaxpr.invars) :], times
            )
            for function in functions
        ]
        if len(results) == 1 and name != "scan":
            return results[0]
        self.results.update(*results)
        varies = any(each.varies for each in inputs)
        outputs = [_value(variable, varies) for variable in eqn.outvars]
        if not functions:
            named = name if name not in _CALLS else eqn.params["name"]
            operation = named, eqn.params, tuple(inputs), tuple(outputs), times
            self.found.append(Operation(*operation))
        return outputs

    def _functions(self, eqn: core.JaxprEqn) -> list[core.ClosedJaxpr]:
        """The functions that an equation calls, but for those that are kept whole."""
        name = eqn.primitive.name
        if name.startswith(_WHOLE) or eqn.params.get("name") in self.whole:
            return []
        values = jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)
        found = [value for value in values if _is_jaxpr(value)]
        if forms := eqn.params.get("branches_platforms"):
            of = [self.platform in (names or ()) for names in forms]
            found = [found[of.index(True) if any(of) else -1]]  # the last: the default
        return [
            f if isinstance(f, core.ClosedJaxpr) else core.ClosedJaxpr(f, ())
            for f in found
        ]


def _value(atom: Any, varies: bool) -> Value:
    aval = atom.aval
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return Value(tuple(getattr(aval, "shape", ())), itemsize, varies)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
