"""Operations run in the form of their platform; few of the others are traced."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from leaps_jax.kernels import dispatch


def primitives(**forms):
    def function(x):
        return dispatch.by_platform(jnp.sin, **forms)(x)

    jaxpr = jax.make_jaxpr(function)(1.0)
    return {name for name in ("sin", "cos", "tan") if f"= {name} " in str(jaxpr)}


@pytest.fixture
def gpu_here(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(dispatch, "compute_capability", lambda: 9.0)


def test_where_there_are_cpus_alone_their_form_is_traced_alone():
    assert primitives(gpu=jnp.cos) == {"sin"}
    assert primitives(gpu=jnp.cos, cpu=jnp.tan) == {"tan"}


def test_an_array_on_a_cpu_beside_a_gpu_takes_the_form_of_cpus(gpu_here):
    assert primitives(gpu=jnp.cos) == {"sin", "cos"}
    assert primitives(gpu=jnp.cos, cpu=jnp.tan) == {"cos", "tan"}
    run = jax.jit(dispatch.by_platform(jnp.sin, gpu=jnp.cos, cpu=jnp.tan))
    assert run(0.5) == jnp.tan(0.5)
    lowered = run.trace(0.5).lower(lowering_platforms=("cuda",)).as_text()
    assert "cosine" in lowered and "stablehlo.tan" not in lowered


def test_under_a_mesh_of_devices_their_form_is_traced_alone(gpu_here):
    for platform, found in {"gpu": "cos", "cpu": "tan"}.items():
        device = AbstractDevice(device_kind="", num_cores=None, platform=platform)
        mesh = AbstractMesh((), (), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert primitives(gpu=jnp.cos, cpu=jnp.tan) == {found}


def test_a_gpu_without_kernels_takes_its_own_form_or_the_plain_one(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for capability in (0.0, 7.5):  # not of NVIDIA, and an old one
        monkeypatch.setattr(dispatch, "compute_capability", lambda c=capability: c)
        assert primitives(gpu=jnp.cos) == {"sin"}
        old = primitives(gpu=jnp.cos, old_gpu=jnp.tan)
        assert old == ({"sin", "tan"} if capability else {"sin"})
