"""A network and models small enough for every test."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from leaps_jax import Model, ModelSpec
from leaps_jax.models import layers


class TinyNet(nn.Module):
    """Three strided convolutions with batch norm: the smallest video classifier.

    Smooth (GELU), so that rounding errors stay rounding errors over many steps.
    """

    classes: int = 5

    @nn.compact
    def __call__(self, x, train=False):
        for number, width in enumerate((8, 16, 16)):
            x = layers.Conv(width, (3, 3, 3), (1, 2, 2), name=f"conv{number}")(x)
            x = nn.gelu(layers.BatchNorm(not train, name=f"norm{number}")(x))
        # Large enough that classes differ, though nothing is trained.
        large = nn.initializers.normal(3.0)
        return nn.Dense(self.classes, kernel_init=large, name="head")(x.mean((1, 2, 3)))


def make_tiny(seed: int) -> Model:
    module = TinyNet()
    variables = module.init(jax.random.key(seed), jnp.zeros((1, 4, 32, 32, 3)))
    spec = ModelSpec(
        "tiny",
        4,
        32,
        ("bend", "jack", "jump", "run", "walk"),
        2,
        (0.45,) * 3,
        (0.2,) * 3,
    )
    return Model(module, variables, spec)
