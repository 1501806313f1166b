"""Repeats runs, and compares every bit with that of the first.

    python benchmarks/soak.py x3d_xs@actions slow_r50_tiny@actions,x3d_xs@actions
        --seconds 3600

Each argument is MODEL or MODEL,VERIFIER. A round is a run of LEAPS of each, of all
synthetic actions, from the same clips and seeds. Prints a line for each run that
differs, with the videos, the first step and the terms that do, and at the end how many
runs there were. Start several at once: kernels may be right while a process has the GPU
to itself, and wrong while processes share it. An error of the device ends a process;
with `CUDA_ENABLE_COREDUMP_ON_EXCEPTION=1` it leaves a file in which cuda-gdb names the
kernel (`target cudacore FILE`).
"""

import argparse
import time

import numpy as np

import leaps_jax as lj
from leaps_jax import synthesis
from leaps_jax.actions import motions
from leaps_jax.cli.main import turn_off_triton_gemm
from leaps_jax.runtime.engine import Engine


class Run:
    """A run that is compiled once and repeated."""

    def __init__(self, pair: str, steps: int, batch: int):
        model, _, verifier = pair.partition(",")
        labels = [motions.CLASSES[i % len(motions.CLASSES)] for i in range(batch)]
        inverted = lj.load_model(model)
        clips = [f"actions:{label}/1" for label in labels]
        self.pair = pair
        self.problem = synthesis.prepare(
            inverted,
            lj.load_stimuli(clips, inverted.spec),
            labels,
            lj.load_model(verifier) if verifier else None,
            lj.Config(steps=steps),
        )
        self.engine = Engine(self.problem)
        self.first: dict[str, np.ndarray] | None = None

    def again(self) -> dict[str, np.ndarray]:
        """Every term of every video at every step, (steps, n), and the last state."""
        problem = self.problem
        placed = self.engine.place(problem.labels, problem.stimuli)
        calls = []
        for snapshot in self.engine.run(len(problem), *placed):
            calls.append(snapshot.metrics)
        found = {name: np.concatenate([c[name] for c in calls]) for name in calls[0]}
        videos = synthesis.as_pixels(problem, snapshot.state().parameters)
        return found | {"videos": videos.reshape(len(problem), -1).T}

    def differs(self) -> str | None:
        """Repeats the run. Says what differs from the first one, None if nothing."""
        found = self.again()
        self.first = self.first or found
        off = {
            name: np.argwhere(found[name] != values)
            for name, values in self.first.items()
        }
        off = {name: places for name, places in off.items() if len(places)}
        if not off:
            return None
        videos = sorted({int(video) for places in off.values() for _, video in places})
        terms = {name: places[:, 0].min() for name, places in off.items()}
        terms.pop("videos", None)
        if not terms:
            return f"videos {videos} in their pixels alone"
        step = min(terms.values())
        names = ", ".join(name for name, first in terms.items() if first == step)
        return f"videos {videos} from step {step} on, first in {names}"


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", metavar="MODEL[,VERIFIER]")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=len(motions.CLASSES))
    options = parser.parse_args()
    turn_off_triton_gemm()
    began = time.monotonic()
    runs = [Run(pair, options.steps, options.batch) for pair in options.pairs]
    count = different = 0
    while time.monotonic() - began < options.seconds:
        for run in runs:
            what = run.differs()
            count += 1
            different += what is not None
            if what:
                at = time.monotonic() - began
                print(f"{at:.0f} s, run {count}, {run.pair}: {what}", flush=True)
    print(f"{different} of {count} runs differ from the first of their kind")
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
