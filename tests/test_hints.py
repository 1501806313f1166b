"""The hint loss is zero for tokens that tell the joints, and one for no answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax import UserError, hints, taps


def hints_of(joints: np.ndarray, times: int, side: int) -> np.ndarray:
    """What a token should tell of one joint: how near it is, and its motion."""
    at = side * joints.reshape(times, -1, 2).mean(1)  # in cells
    truth = np.zeros((1, times, side * side, 3), np.float32)
    for t, n in np.ndindex(times, side * side):
        cell = np.array([n % side, n // side]) + 0.5
        near = np.exp(-np.square(cell - at[t]).sum())
        truth[0, t, n, 0] = near
        truth[0, t, n, 1:] = near * np.gradient(at, axis=0)[t] / (near + 0.1)
    return truth


@pytest.mark.parametrize("times", [4, 2], ids=["frames", "tubelets"])
@pytest.mark.parametrize("token", [False, True], ids=["grid", "class token"])
def test_a_perfect_answer_loses_nothing_and_none_loses_one(times, token):
    x = np.linspace(0.2, 0.8, 4)
    joints = np.stack([x, 0.5 + 0.3 * x], -1)[None, :, None]  # b t j 2
    truth = hints_of(joints, times, 4)
    if token:
        truth = np.concatenate([np.full_like(truth[:, :, :1], 9.0), truth], 2)
    found = {
        "norm": taps.Tap("norm", jnp.zeros((1, times, 16, 3)), 1),
        "mlp": taps.Tap("mlp", jnp.array(truth), 1),
        "no grid": taps.Tap("no grid", jnp.zeros((1, 7, 3)), None),
    }
    head = {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}
    assert hints.hint_loss(head, found, joints) < 1e-6
    none = jax.tree.map(jnp.zeros_like, head)
    assert hints.hint_loss(none, found, joints) == pytest.approx(1, abs=1e-3)
    elsewhere = joints[..., ::-1]
    assert hints.hint_loss(head, found, elsewhere) > 0.3


def test_hints_need_a_grid_of_tokens():
    tap = taps.Tap("norm", jnp.zeros((1, 4, 6, 3)), 1)
    with pytest.raises(UserError, match="no square grid"):
        hints.hint_loss({}, {"norm": tap}, jnp.zeros((1, 4, 1, 2)))
