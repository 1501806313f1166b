"""Loop-invariant code motion: computes once what does not change from step to step.

The weights of a frozen network are cast, folded and transposed in every step, and XLA
for GPUs leaves these operations inside of the loop. XLA for CPUs is faster without this
transformation.

>>> ones = jax.numpy.ones(3)
>>> step = hoist(lambda x, w: x + jax.numpy.sin(w), ones, [ones])
>>> [str(eqn.primitive) for eqn in jax.make_jaxpr(step)(ones).eqns]
['add']
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

# Recomputing a large broadcast is faster than reading it from memory.
_BROADCASTS = ("broadcast_in_dim", "iota")
_FEW = 2**16  # elements


def hoist(
    function: Callable,
    varying: Any,
    constants: Sequence[Any],
    device: jax.Device | None = None,
) -> Callable:
    """Hoists the loop-invariant operations of a loop's body out of the loop.

    Operations on `constants` alone run now, once. Branches for other platforms
    (`jax.lax.platform_dependent`) are dropped.

    Args:
      function: the body, `(varying, *constants) -> tree`, pure.
      varying: a tree with the shapes of the loop's carry.
      constants: trees.
      device: a device of this process on which it will run; the default one if None.

    Returns:
      The rest of the body, `varying -> tree`.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(varying, *constants)
    body = _Body(device)
    inputs = [body.variable() for _ in jax.tree.leaves(varying)]
    fixed = [body.constant(leaf) for leaf in jax.tree.leaves(tuple(constants))]
    outputs = body.add(closed, [*inputs, *fixed])

    def run(varying: Any) -> Any:
        leaves = jax.tree.leaves(varying)
        leaves = body.run(dict(zip(inputs, leaves, strict=True)), outputs)
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return run


class _Body:
    """The invariant values of a loop's body, and its remaining operations.

    Variables are numbers. Calls are inlined, with new variables at each call.
    """

    def __init__(self, device: jax.Device | None):
        self.device = device
        self.count = 0
        self.known: dict[int, Any] = {}
        self.remaining: list[tuple[str, Callable, list[int], list[int]]] = []

    def variable(self) -> int:
        self.count += 1
        return self.count

    def constant(self, value: Any) -> int:
        self.known[number := self.variable()] = value
        return number

    def add(
        self, closed: core.ClosedJaxpr, inputs: Sequence[int], scope: str = ""
    ) -> list[int]:
        """Adds a function of these variables, and returns its outputs."""
        jaxpr = closed.jaxpr
        numbers = dict(zip(jaxpr.invars, inputs, strict=True))
        numbers |= zip(jaxpr.constvars, map(self.constant, closed.consts), strict=True)

        def number(atom: Any) -> int:
            literal = isinstance(atom, core.Literal)
            return self.constant(atom.val) if literal else numbers[atom]

        for eqn in jaxpr.eqns:
            inputs = [number(atom) for atom in eqn.invars]
            single = jaxpr.replace(
                constvars=[],
                invars=[v for v in eqn.invars if not isinstance(v, core.Literal)],
                outvars=eqn.outvars,
                eqns=[eqn],
            )
            compute = core.jaxpr_as_fun(core.ClosedJaxpr(single, ()))
            outputs = self._add_equation(eqn, compute, inputs, scope)
            numbers |= zip(eqn.outvars, outputs, strict=True)
        return [number(atom) for atom in jaxpr.outvars]

    def _add_equation(
        self, eqn: core.JaxprEqn, compute: Callable, inputs: list[int], scope: str
    ) -> list[int]:
        kind = eqn.primitive.name
        known = [number in self.known for number in inputs]
        if kind == "platform_index":
            platform, branches = platform_of(self.device), eqn.params["platforms"]
            matches = (not names or platform in names for names in branches)
            return [self.constant(list(matches).index(True))]
        if kind == "cond" and isinstance(which := self.known.get(inputs[0]), int):
            return self.add(eqn.params["branches"][which], inputs[1:], scope)
        if kind in ("jit", "pjit") and any(known):
            scope = f"{scope}/{eqn.source_info.name_stack}".strip("/")
            return self.add(eqn.params["jaxpr"], inputs, scope)
        variables = [
            number
            for number, atom in zip(inputs, eqn.invars, strict=True)
            if not isinstance(atom, core.Literal)
        ]
        if all(known) and not eqn.effects and not _is_large_broadcast(eqn):
            with jax.named_scope(scope):
                values = compute(*[self.known[number] for number in variables])
            return [self.constant(value) for value in values]
        outputs = [self.variable() for _ in eqn.outvars]
        self.remaining.append((scope, compute, variables, outputs))
        return outputs

    def run(self, values: dict[int, Any], outputs: Sequence[int]) -> list[Any]:
        """The outputs, from the values of the varying inputs."""
        values = self.known | values
        for scope, compute, inputs, results in self.remaining:
            with jax.named_scope(scope):
                found = compute(*[values[number] for number in inputs])
            values |= zip(results, found, strict=True)
        return [values[number] for number in outputs]


def platform_of(device: jax.Device | None) -> str:
    """The name of a device's platform in `jax.lax.platform_dependent`.

    Args:
      device: of this process; nothing runs on it. The default one if None.
    """
    device = device or jax.local_devices()[0]
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


def _is_large_broadcast(eqn: core.JaxprEqn) -> bool:
    before, after = (
        sum(math.prod(getattr(v.aval, "shape", ())) for v in atoms)
        for atoms in (eqn.invars, eqn.outvars)
    )
    return eqn.primitive.name in _BROADCASTS and after > max(before, _FEW)
