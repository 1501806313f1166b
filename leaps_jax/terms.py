"""Terms of a loss, and their weighted sums.

A term is a function `Context -> loss per video (b,)` with a name. It never knows its
own weight. Objectives add, subtract and scale, so a new one is an expression:

>>> bright = term("bright", lambda context: -context.video.mean((1, 2, 3, 4)))
>>> (2 * bright - 0.5 * bright.named("again")).weights
{'bright': 2.0, 'again': -0.5}
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp

from leaps_jax.errors import UserError, nearest
from leaps_jax.model import Moments
from leaps_jax.taps import Tap


class Primed(flax.struct.PyTreeNode):
    """Means of the taps for the stimulus, those that the objective uses.

    Attributes:
      means: per tap, the mean over all positions, (b, c).
      by_time: by the cells that a term asks for, per tap that has time, the means over
        each cell of space at each step, (b, t, k, c).
    """

    means: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)
    by_time: Mapping[int, Mapping[str, jax.Array]] = flax.struct.field(
        default_factory=dict
    )


@dataclasses.dataclass(frozen=True)
class Context:
    """The inputs of a term, for a batch of b videos on one device.

    Attributes:
      video: (b, t, h, w, 3), normalised, without the random view of the step.
      logits: (b, classes) of the inverted model.
      labels: (b,) target classes, -1 for a video without one.
      taps: of the inverted model, in order of execution.
      primed: means of the taps for the stimuli.
      verifier_logits: (b, classes) of the verifier, for the same videos; None without.
      verifier_taps: of the verifier, likewise.
      verifier_moments: per verifier tap, the mean and variance (c,) to match.
      batch_mean: `(b, ...) -> (...)`, the mean over the videos of *all* devices.
    """

    video: jax.Array
    logits: jax.Array
    labels: jax.Array
    taps: Mapping[str, Tap] = dataclasses.field(default_factory=dict)
    primed: Primed = Primed()
    verifier_logits: jax.Array | None = None
    verifier_taps: Mapping[str, Tap] = dataclasses.field(default_factory=dict)
    verifier_moments: Moments = dataclasses.field(default_factory=dict)
    batch_mean: Callable[[jax.Array], jax.Array] = lambda x: x.mean(0)

    def __post_init__(self) -> None:
        for field in ("taps", "verifier_taps"):
            object.__setattr__(self, field, _ByName(field, getattr(self, field)))


class _ByName(dict[str, Tap]):
    """Taps, of which an unknown one is a mistake of the user's term."""

    def __init__(self, field: str, taps: Mapping[str, Tap]):
        super().__init__(taps)
        self._field = field

    def __missing__(self, name: str) -> Tap:
        known = nearest(name, self) if self else "the model has none"
        raise UserError(f"{self._field}[{name!r}]: no such tap; {known}")


@dataclasses.dataclass(frozen=True)
class Term:
    """A named loss, and what it needs.

    Attributes:
      name: of the term in metrics and weights.
      loss: `Context -> (b,)`.
      uses: some of "label", "tap", "stimulus", "stimulus by time", "verifier" (its taps
        and their moments) and "verifier logits".
      cells: along height and width, that `Primed.by_time` should have for it.
    """

    name: str
    loss: Callable[[Context], jax.Array]
    uses: frozenset[str] = frozenset()
    cells: int = 1


_OF_VERIFIER = frozenset(["verifier", "verifier logits"])


@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted sum of terms; `+`, `-` and `*` by a number return a new one."""

    terms: tuple[tuple[float, Term], ...]

    def __post_init__(self) -> None:
        names = [term.name for _, term in self.terms]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"objective: two terms are named {name!r}; rename one with"
                    " .named(...)"
                )

    @property
    def uses(self) -> frozenset[str]:
        return frozenset().union(*(term.uses for _, term in self.terms))

    @property
    def cells(self) -> frozenset[int]:
        """The `cells` of the terms that use the stimulus by time."""
        return frozenset(
            term.cells for _, term in self.terms if "stimulus by time" in term.uses
        )

    @property
    def primed(self) -> bool:
        """Whether a term compares the video with the stimulus."""
        return bool(self.uses & {"stimulus", "stimulus by time"})

    @property
    def verified(self) -> bool:
        """Whether a term looks at a verifier."""
        return bool(self.uses & _OF_VERIFIER)

    @property
    def title(self) -> str:
        """What a video without a class is made for: the taps, or else all terms."""
        names = [term.name for _, term in self.terms if "tap" in term.uses]
        return " + ".join(names or self.weights)

    @property
    def weights(self) -> dict[str, float]:
        return {term.name: weight for weight, term in self.terms}

    def values(self, context: Context) -> dict[str, jax.Array]:
        """Each term raw, without its weight: {name: (b,)}.

        Raises:
          UserError: a term gives something else than a loss per video.
        """
        values = {term.name: term.loss(context) for _, term in self.terms}
        for name, value in values.items():
            if jnp.shape(value) != context.labels.shape:
                raise UserError(
                    f"term={name!r}: gives an array of shape {jnp.shape(value)}, not a"
                    f" loss for each of {len(context.labels)} videos; take the mean"
                    " over every axis but the first"
                )
        return values

    def total(self, values: Mapping[str, jax.Array]) -> jax.Array:
        """The weighted sum of what `values` returned, (b,)."""
        return sum(
            (weight * values[term.name] for weight, term in self.terms),
            start=jnp.zeros(()),
        )

    def named(self, name: str) -> "Objective":
        """The same objective of one term under another name."""
        ((weight, term),) = self.terms
        return Objective(((weight, dataclasses.replace(term, name=name)),))

    def without(self, name: str) -> "Objective":
        """An ablation: the objective without one of its terms.

        >>> loss = lambda context: context.logits.max(1)
        >>> (term("a", loss) + term("b", loss)).without("b").weights
        {'a': 1.0}
        """
        if name not in self.weights:
            raise UserError(f"term={name!r}: {nearest(name, self.weights)}")
        return Objective(tuple((w, t) for w, t in self.terms if t.name != name))

    def without_verifier(self) -> "Objective":
        """The objective without the terms that need a verifier."""
        terms = [(w, t) for w, t in self.terms if not t.uses & _OF_VERIFIER]
        return Objective(tuple(terms))

    def __add__(self, other: "Objective") -> "Objective":
        if not isinstance(other, Objective):
            return NotImplemented
        return Objective(self.terms + other.terms)

    def __mul__(self, factor: float) -> "Objective":
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise TypeError(f"an objective is scaled by a number, not by {factor!r}")
        return Objective(tuple((factor * w, term) for w, term in self.terms))

    __rmul__ = __mul__

    def __neg__(self) -> "Objective":
        return -1.0 * self

    def __sub__(self, other: "Objective") -> "Objective":
        if not isinstance(other, Objective):
            return NotImplemented
        return self + -other


def term(
    name: str, loss: Callable[[Context], jax.Array], *, uses: Sequence[str] = ()
) -> Objective:
    """An objective of one term of weight 1: the way to add your own.

    >>> dark = term("dark", lambda context: context.video.mean((1, 2, 3, 4)))
    """
    return Objective(((1.0, Term(name, loss, frozenset(uses))),))
