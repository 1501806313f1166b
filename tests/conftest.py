"""Models small enough for every test, and full float32 products."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from tiny import make_tiny

from leaps_jax import Model
from leaps_jax.kernels import attention, dispatch, window_attention

jax.config.update("jax_default_matmul_precision", "highest")
pytest.register_assert_rewrite("command")  # of tests/cli
# Not searched for doctests: as modules, two of one name clash.
collect_ignore_glob = ["*conftest.py"]


def pytest_configure(config):
    """Compiles with few optimisations, unless heavy tests are among those asked for.

    Compiling networks this small takes longer than running them. Signals that a shell
    in the background has set to be ignored are heard: tests send them.
    """
    for name, handler in (
        ("SIGINT", signal.default_int_handler),
        ("SIGHUP", signal.SIG_DFL),
    ):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    flags = os.environ.get("XLA_FLAGS", "")
    if config.option.markexpr == "not heavy" and "optimization_level" not in flags:
        flags += " --xla_backend_optimization_level=1"
        os.environ["XLA_FLAGS"] = flags.strip()  # also of processes that tests start


@pytest.fixture
def forget_compiled():
    """Else what is compiled stays to the end: 45 MiB of a full-size network."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def room_for_more():
    """Forgets compiled functions before they fill what a process may have.

    Each takes some three memory mappings on a CPU, of which Linux allows a process
    65,530; XLA crashes when there are no more. Those of a whole run take gigabytes.
    """
    yield
    process = Path("/proc/self")
    if process.exists():
        mappings = (process / "maps").read_bytes().count(b"\n")
        resident = int((process / "statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
        if mappings > 20_000 or resident > 3 * 2**30:
            jax.clear_caches()
            with contextlib.suppress(AttributeError):  # glibc keeps what is freed
                ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Programs take the forms that they take on a GPU, and run here.

    Without one kernels are interpreted. What is given to cuDNN goes to JAX's own form
    of the same operation, and float32 counts as half precision.
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

    def chosen(plain, *, gpu=None, old_gpu=None, cpu=None):
        return (
            gpu if dispatch.compute_capability() >= dispatch.AMPERE else old_gpu
        ) or plain

    if jax.default_backend() != "gpu":
        monkeypatch.setattr(pl, "pallas_call", interpreted)
        # for which that has assembly
        monkeypatch.setattr(window_attention, "_exp2", jnp.exp2)
        monkeypatch.setattr(dispatch, "compute_capability", lambda: dispatch.AMPERE)
    monkeypatch.setattr(jax.nn, "dot_product_attention", like_cudnn)
    monkeypatch.setattr(dispatch, "by_platform", chosen)
    monkeypatch.setattr(dispatch, "on_gpu", lambda: True)
    monkeypatch.setattr(attention, "HALF", (jnp.float32, jnp.bfloat16))
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny() -> Model:
    return make_tiny(0)


@pytest.fixture(scope="session")
def verifier() -> Model:
    return make_tiny(1)


@pytest.fixture(scope="session")
def stimuli() -> np.ndarray:
    return np.random.default_rng(0).random((5, 4, 32, 32, 3), np.float32)
