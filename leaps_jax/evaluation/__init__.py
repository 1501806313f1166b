"""Is it right? What judges see in videos, and whether the videos show the motion.

`evaluate` asks everything at once; the modules hold the parts: `metrics` numbers of
answers, `motion` of pixels, `judges` the asking, `protocol` what is asked, `tables` and
`page` tell of it.
"""

from leaps_jax.evaluation.judges import (
    CHANGES,
    ORDERS,
    Answers,
    ask,
    joined,
    judge,
    motion_counts,
    motion_test,
    seen,
)
from leaps_jax.evaluation.metrics import accuracy, diversity, inception_score
from leaps_jax.evaluation.motion import (
    motion_energy,
    neighbour_change,
    warping_error,
)
from leaps_jax.evaluation.protocol import evaluate, fresh_noise

__all__ = [
    "CHANGES",
    "ORDERS",
    "Answers",
    "accuracy",
    "ask",
    "diversity",
    "evaluate",
    "fresh_noise",
    "inception_score",
    "joined",
    "judge",
    "motion_counts",
    "motion_energy",
    "motion_test",
    "neighbour_change",
    "seen",
    "warping_error",
]
