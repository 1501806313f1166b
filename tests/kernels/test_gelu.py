"""The GELU of a GPU is the one that defines it."""

import math
import subprocess
import sys

import checks
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax.kernels import dispatch, gelu


@pytest.mark.parametrize("tanh", [True, False])
@pytest.mark.parametrize("shape", [(3, 7, 37), (2, 1024)])
def test_gelu_of_a_gpu(on_a_gpu, tanh, shape):
    x = np.linspace(-12, 12, math.prod(shape), dtype=np.float32).reshape(shape)
    gradient = np.cos(np.arange(x.size, dtype=np.float32)).reshape(shape)

    def values(form, x, gradient):
        y, transpose = jax.vjp(form, x)
        return y, *transpose(gradient)

    found = values(lambda x: gelu.gelu(x, tanh), x, gradient)
    with jax.enable_x64():  # 1 + tanh has no digits left in float32
        x, gradient = np.float64(x), np.float64(gradient)
        known = values(lambda x: nn.gelu(x, approximate=tanh), x, gradient)
    for a, b in zip(found, known, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tanh", [True, False])
def test_gelu_of_a_gpu_is_finite_far_from_zero(on_a_gpu, tanh):
    x = jnp.array([-3e4, -100.0, 0.0, 100.0, 3e4], jnp.bfloat16)
    y, transpose = jax.vjp(lambda x: gelu.gelu(x, tanh), x)
    np.testing.assert_array_equal(y.astype(np.float32), np.maximum(x, 0, dtype="f4"))
    slopes = transpose(jnp.ones_like(x))[0].astype(np.float32)
    np.testing.assert_allclose(slopes, [0, 0, 0.5, 1, 1], atol=1e-6)


def test_gelu_is_a_kernel_of_a_gpu_and_so_is_its_gradient():
    x = jax.ShapeDtypeStruct((2, 5, 768), jnp.bfloat16)

    def loss(x):
        return gelu.gelu(x, tanh=False).astype(jnp.float32).sum()

    text = checks.lowered_for_a_gpu(jax.grad(loss), x)
    assert "gelu_gradient" in text


def test_without_the_backend_the_plain_form_runs_and_a_line_says_so(monkeypatch):
    monkeypatch.setattr(dispatch, "triton", None)
    monkeypatch.setattr(dispatch, "compute_capability", lambda: 9.0)
    dispatch._tell_what_is_missing.cache_clear()
    x = jax.ShapeDtypeStruct((2, 5, 24), jnp.float32)
    with pytest.warns(UserWarning, match="has no Triton backend") as told:
        text = checks.lowered_for_a_gpu(lambda x: gelu.gelu(x, tanh=False), x)
    assert len(told) == 1 and "triton" not in text and "erf" in text
    checks.lowered_for_a_gpu(lambda x: gelu.gelu(x, tanh=True), x)  # told once
    dispatch._tell_what_is_missing.cache_clear()


def test_the_package_is_imported_without_the_backend():
    program = (
        "import sys; sys.modules['jax.experimental.pallas.triton'] = None;"
        "import leaps_jax, leaps_jax.kernels.dispatch as d; assert d.triton is None"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
