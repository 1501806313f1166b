"""The project's gallery: what the shipped models have learnt of each synthetic action.

    python benchmarks/gallery.py gallery/

A run for each model, one video a class, in the folder `runs/`; then `leaps-jax gallery`
of them all. Runs that are finished are not done again. The small gallery of docs/ has
fewer of both:

    python benchmarks/gallery.py docs/gallery --models vivit_small@robust \
        timesformer_small@robust slow_r50_tiny@robust --steps 250 --labels \
        "jumping jack" "waving both hands" squatting kicking
"""

import argparse
import sys
from pathlib import Path

from leaps_jax import render
from leaps_jax.actions import motions
from leaps_jax.cli.main import main as leaps_jax

ROBUST = ("vivit_small@robust", "timesformer_small@robust", "slow_r50_tiny@robust")
STANDARD = (
    "vivit_small@actions",
    "timesformer_small@actions",
    "slow_r50_tiny@actions",
    "x3d_xs@actions",
)
# docs/robust-models.md: with these, judges see most in videos of standard models.
SMOOTHER = """spatial_tv=10 spatial_decay=1.5 temporal_decay=0.5 priming=6
 priming_per_step=15 learning_rate=0.05 weight_decay=0.1 epsilon=0.1"""


def main() -> int:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the gallery")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="their folder")
    parser.add_argument("--models", nargs="+", default=[*ROBUST, *STANDARD])
    parser.add_argument("--labels", nargs="+", default=list(motions.CLASSES))
    parser.add_argument("--steps", help="1200 for standard models, 200 for others")
    parser.add_argument("--seed", default="1", help="of stimuli and noise")
    options = parser.parse_args()
    if reason := render.can_write():
        parser.error(reason)
    runs = []
    for model in options.models:
        run = options.runs / model
        standard = model in STANDARD
        words = ["synthesize", "--model", model, "--out", str(run)]
        words += [
            "--stimulus",
            *(f"actions:{c}/{options.seed}" for c in options.labels),
        ]
        words += ["--judge", *(m for m in (*ROBUST, *STANDARD) if m != model)]
        words += ["--steps", options.steps or ("1200" if standard else "200")]
        words += ["--seed", options.seed, "--preview-every", "0"]
        if standard:
            words += ["--set", *SMOOTHER.split()]
        if code := leaps_jax(words):
            return code
        runs.append(str(run))
    return leaps_jax(["gallery", *runs, "--out", str(options.out), "--overwrite"])


if __name__ == "__main__":
    sys.exit(main())
