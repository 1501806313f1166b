"""A network and models small enough for every test, and full float32 products."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from leaps_jax import Model, ModelSpec
from leaps_jax.kernels import attention, dispatch, window_attention
from leaps_jax.models import layers

jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def forget_compiled():
    """Else what is compiled stays to the end: 45 MiB of a full-size network."""
    yield
    jax.clear_caches()


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Programs take the forms that they take on a GPU, and run here.

    Kernels are interpreted, what is given to cuDNN goes to JAX's own form of the same
    operation, and float32 counts as half precision.
    """
    jax.clear_caches()
    pallas_call, attention_of_jax = pl.pallas_call, jax.nn.dot_product_attention

    def interpreted(*args, compiler_params, **options):
        assert isinstance(compiler_params, triton.CompilerParams)
        return pallas_call(*args, interpret=True, **options)

    def like_cudnn(*args, implementation, **options):
        assert implementation == "cudnn"
        length, channels = args[0].shape[1], args[0].shape[-1]
        assert length % 2 == 0
        assert channels % 8 == 0
        assert args[1].shape == args[2].shape
        return attention_of_jax(*args, implementation="xla", **options)

    def chosen(*args, default, cuda=None, **_):
        return (cuda or default)(*args)

    monkeypatch.setattr(pl, "pallas_call", interpreted)
    monkeypatch.setattr(jax.nn, "dot_product_attention", like_cudnn)
    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "HALF", (jnp.float32, jnp.bfloat16))
    monkeypatch.setattr(
        window_attention, "_exp2", jnp.exp2
    )  # for which that has assembly
    monkeypatch.setattr(dispatch, "generation", lambda: 8.0)
    yield
    jax.clear_caches()


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


@pytest.fixture(scope="session")
def tiny() -> Model:
    return make_tiny(0)


@pytest.fixture(scope="session")
def verifier() -> Model:
    return make_tiny(1)


@pytest.fixture(scope="session")
def stimuli() -> np.ndarray:
    return np.random.default_rng(0).random((5, 4, 32, 32, 3), np.float32)
