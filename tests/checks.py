"""What a network must be for LEAPS to invert it, in each form it has."""

import dataclasses
import re
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh

from leaps_jax import taps
from leaps_jax.kernels import dispatch
from leaps_jax.model import norm_inputs


def lowered_for_a_gpu(function, *arguments) -> str:
    """The text of a program for a GPU that is not here."""
    # JAX makes a Triton kernel for the device of the mesh that it is traced under.
    device = AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    mesh = AbstractMesh((), (), abstract_device=device)
    with (
        jax.sharding.use_abstract_mesh(mesh),
        mock.patch.object(dispatch, "compute_capability", lambda: 9.0),
    ):
        traced = jax.jit(function).trace(*arguments)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@dataclasses.dataclass(frozen=True)
class Observed:
    """What a network makes of a batch of videos.

    Attributes:
      logits: (b, classes).
      means: per tap, in the order that they run in, its mean over all positions.
      gradient: of the second logit of every video.
      jaxpr: of all of this.
    """

    logits: np.ndarray
    means: dict[str, np.ndarray]
    gradient: np.ndarray
    jaxpr: str


def observe(module, variables, videos) -> Observed:
    """Runs a network.

    Raises:
      AssertionError: the leading axis of a tap is not the videos.
    """
    names: list[str] = []

    def score(videos, variables):
        logits, found = taps.apply(module, variables, videos, norm_inputs)
        assert {tap.value.shape[0] for tap in found.values()} == {len(videos)}
        names.extend(found)
        return logits[:, 1].sum(), (logits, [tap.mean() for tap in found.values()])

    traced = jax.jit(jax.value_and_grad(score, has_aux=True)).trace(videos, variables)
    run = traced.lower().compile()
    (_, (logits, means)), gradient = jax.device_get(run(videos, variables))
    means = dict(zip(names, means, strict=True))
    return Observed(logits, means, gradient, str(traced.jaxpr))


def assert_gradient_reaches_every_frame(gradient, least: float = 0.0) -> None:
    """Of every video; `least` is a share of what reaches the frame with the most."""
    by_frame = np.abs(gradient).max((2, 3, 4))
    assert np.isfinite(gradient).all()
    assert (by_frame > least * by_frame.max()).all()


def assert_same(found: Observed, plain: Observed, tolerance: float) -> None:
    """The same logits, taps in the same order, and gradient."""
    close: dict[str, Any] = {"rtol": tolerance, "atol": tolerance / 10}
    np.testing.assert_allclose(found.logits, plain.logits, **close)
    assert list(found.means) == list(plain.means)
    for tap, mean in plain.means.items():
        np.testing.assert_allclose(found.means[tap], mean, **close, err_msg=tap)
    least = tolerance * np.abs(plain.gradient).max()
    np.testing.assert_allclose(found.gradient, plain.gradient, rtol=1e-3, atol=least)


def assert_recomputing_changes_nothing(module, variables, videos, plain: Observed):
    again = observe(module.clone(remat=True), variables, videos)
    assert again.jaxpr.count("= remat") > plain.jaxpr.count("= remat")
    assert_same(again, plain, 1e-5)


def assert_bfloat16_is_close(module, variables, videos, plain: Observed) -> None:
    """And that convolutions are in it, or matrix products where there are none."""
    half = observe(module.clone(dtype=jnp.bfloat16), variables, videos)
    assert list(half.means) == list(plain.means)
    convolutions = set(re.findall(r":(\w+)\[[\d,]*\] = conv_general", half.jaxpr))
    products = set(re.findall(r":(\w+)\[[\d,]*\] = dot_general", half.jaxpr))
    assert convolutions <= {"bf16"} and "bf16" in convolutions | products
    assert half.logits.dtype == plain.logits.dtype == np.float32
    off = half.logits - plain.logits
    assert 0 < np.linalg.norm(off) < 0.05 * np.linalg.norm(plain.logits)
    assert np.abs(off).max() < 0.1 * np.std(plain.logits)
    assert np.isfinite(half.gradient).all()
