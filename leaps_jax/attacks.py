"""L2 attacks: the small change of a clip that misleads a classifier most.

Training against them makes weights whose gradients follow shapes and not texture
(A. Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR
2018, arXiv 1706.06083), so that what is synthesised from them can be recognised
(S. Santurkar et al., "Image Synthesis with a Single (Robust) Classifier", NeurIPS
2019, arXiv 1906.09453).

>>> Attack(radius=3.0).strong().steps
20
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from leaps_jax import video as video_lib
from leaps_jax.errors import UserError
from leaps_jax.model import Model


@dataclasses.dataclass(frozen=True)
class Attack:
    """Projected gradient ascent inside a ball around a clip.

    Attributes:
      radius: of the ball: the largest L2 norm of the change over a whole clip, pixels
        in [0, 1].
      steps: of gradient ascent.
      step: length of one, as a share of the radius.
      start: norm of the random change to start from, as a share of the radius.
      restarts: random starts; a clip withstands an attack if it withstands all.
    """

    radius: float
    steps: int = 2
    step: float = 0.7
    start: float = 0.5
    restarts: int = 1

    def __post_init__(self) -> None:
        for name in ("radius", "step"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise UserError(f"{name}={value}: must be a positive number")
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.start <= 1:
            raise UserError(f"start={self.start}: must be from 0 to 1")

    def strong(self) -> "Attack":
        """The attack to measure with: 20 smaller steps, two random starts."""
        return dataclasses.replace(self, steps=20, step=0.15, restarts=2)


def attacked(
    loss: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    pixels: jax.Array,
    attack: Attack,
    radius: jax.Array | float | None = None,
) -> jax.Array:
    """Clips changed so that a loss rises, (b, t, h, w, 3) pixels in [0, 1].

    Args:
      loss: pixels -> a sum over clips of what should rise, a scalar.
      key: of the random start.
      pixels: (b, t, h, w, 3) in [0, 1].
      attack: its numbers; `restarts` is not looked at.
      radius: in place of the attack's, where a schedule changes it.
    """
    radius = attack.radius if radius is None else radius
    change = radius * attack.start * _unit(jax.random.normal(key, pixels.shape))
    slope = jax.grad(lambda change: loss(jnp.clip(pixels + change, 0, 1)))

    def ascend(change: jax.Array, _) -> tuple[jax.Array, None]:
        change = change + radius * attack.step * _unit(slope(change))
        return change * jnp.minimum(1, radius / (_norm(change) + 1e-12)), None

    change, _ = jax.lax.scan(ascend, change, length=attack.steps)
    return jax.lax.stop_gradient(jnp.clip(pixels + change, 0, 1))


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(x).sum((1, 2, 3, 4), keepdims=True))


def _unit(x: jax.Array) -> jax.Array:
    return x / (_norm(x) + 1e-12)


def withstands(
    model: Model, pixels: np.ndarray, labels: np.ndarray, attack: Attack, seed: int = 0
) -> np.ndarray:
    """Which clips a model still names right under an attack, (b,) of bool.

    Args:
      model: in evaluation mode; it is attacked through its cross-entropy.
      pixels: (b, t, h, w, 3) in [0, 1], in the model's own frames and size.
      labels: (b,) true classes.
      attack: a clip must withstand each of its restarts.
      seed: of the random starts.
    """
    right = np.ones(len(labels), bool)
    for restart in range(attack.restarts):
        key = jax.random.fold_in(jax.random.key(seed), restart)
        right &= np.asarray(
            _withstands(
                model.module, model.spec, attack, model.variables, key, pixels, labels
            )
        )
    return right


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _withstands(module, spec, attack, variables, key, pixels, labels):
    def logits(pixels):
        return module.apply(variables, video_lib.normalize(pixels, spec))

    def loss(pixels):
        predicted = logits(pixels).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(predicted, labels).sum()

    return logits(attacked(loss, key, pixels, attack)).argmax(-1) == labels
