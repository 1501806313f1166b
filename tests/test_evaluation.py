"""Accuracy counts what is right, and a judge of motion must see it turn round."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax import Model, ModelSpec, evaluation

LEFT, RIGHT = "walking left", "walking right"
KNOWN = (LEFT, "boxing", RIGHT, "running left")


class Judge(nn.Module):
    """Walking left or right: the way that the light goes, or `always` the same."""

    always: float = 0.0

    def __call__(self, x, train=False):
        light = x.mean(-1).sum(2)  # b t w
        where = (light * jnp.arange(light.shape[-1])).sum(-1) / light.sum(-1)
        way = self.always or where[:, -1] - where[:, 0]
        way = jnp.broadcast_to(way, len(x))
        return jnp.stack([-way, 0 * way - 9, way, 0 * way - 9], -1)


def judge(always: float = 0.0) -> Model:
    return Model(Judge(always), {}, ModelSpec("judge", 4, 16, KNOWN))


def blob(step: int) -> np.ndarray:
    video = np.full((4, 16, 16, 3), 0.1, np.float32)
    for t, frame in enumerate(video):
        at = 7 + step * (2 * t - 3) // 2
        frame[6:9, at : at + 3] = 0.9
    return video


VIDEOS = np.stack([blob(-2), blob(2)])


def test_accuracy_counts_what_is_right():
    probabilities = np.array(
        [
            [0.6, 0.1, 0.3, 0.0],  # left, right
            [0.3, 0.6, 0.1, 0.0],  # left, taken for boxing, but rather left than right
            [0.5, 0.1, 0.4, 0.0],  # right, taken for left
            [0.1, 0.8, 0.1, 0.0],  # boxing
        ]
    )
    found = evaluation.accuracy(probabilities, np.array([0, 0, 2, 1]), KNOWN)
    assert found["clips"] == 4 and found["top1"] == 0.5
    assert found["classes"] == {LEFT: 0.5, "boxing": 1.0, RIGHT: 0.0}
    (pair,) = found["reversed_pairs"].values()
    assert pair == {"top1": pytest.approx(1 / 3), "choice": pytest.approx(2 / 3)}


@pytest.mark.filterwarnings("error")
def test_a_pair_without_clips_has_no_accuracy():
    found = evaluation.accuracy(np.eye(4)[[1]], np.array([1]), KNOWN)
    assert found["top1"] == 1 and found["reversed_pairs"] == {}


def test_a_motion_that_is_seen_turns_round():
    rows = evaluation.truth(judge(), VIDEOS, [LEFT, RIGHT])
    assert {(r["video"], r["class"], r["partner"], r["change"]) for r in rows} == {
        (i, *names, change)
        for i, names in enumerate([(LEFT, RIGHT), (RIGHT, LEFT)])
        for change in ("reversed", "mirrored")
    }
    assert all(row["before"] > 0.9 and row["after"] > 0.9 for row in rows)
    all_of_them = {"of": 2, "right": 2, "flips": 2}
    counted = evaluation.summary(rows)
    assert counted == {"reversed": all_of_them, "mirrored": all_of_them}


def test_a_judge_that_ignores_motion_does_not_turn_round():
    rows = evaluation.truth(judge(always=1.0), VIDEOS, [LEFT, RIGHT])
    assert {(row["class"], row["before"] > 0.5) for row in rows} == {
        (LEFT, False),
        (RIGHT, True),
    }
    # what is wrong before is right after, by no merit; what was right is not
    assert all((row["before"] > 0.5) != (row["after"] > 0.5) for row in rows)
    one = {"of": 2, "right": 1, "flips": 1}
    assert evaluation.summary(rows) == {"reversed": one, "mirrored": one}


def test_the_wrong_motion_is_not_right():
    rows = evaluation.truth(judge(), VIDEOS[::-1], [LEFT, RIGHT])
    none = {"of": 2, "right": 0, "flips": 0}
    assert evaluation.summary(rows) == {"reversed": none, "mirrored": none}


def test_classes_without_a_partner_that_the_judge_knows_are_left_out():
    names = ["boxing", "sitting down", "running left", "no action", RIGHT]
    rows = evaluation.truth(judge(), VIDEOS[[1] * 5], names)
    assert {(row["video"], row["class"]) for row in rows} == {(4, RIGHT)}
    assert evaluation.truth(judge(), VIDEOS, ["boxing", "no action"]) == []
    assert evaluation.summary([]) == {}


def test_what_a_judge_sees():
    videos = VIDEOS[[0, 1] * 5]  # more than a batch
    found = evaluation.judge(judge(), videos, [RIGHT] * 10)
    assert (found["model"], found["correct"], found["of"]) == ("judge", 5, 10)
    assert found["seen"] == [LEFT, RIGHT] * 5
    assert all(0.9 < confidence <= 1 for confidence in found["confidence"])
