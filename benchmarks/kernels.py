"""Where the time of a step goes: its kernels, by kind and one by one. For GPUs.

    python benchmarks/kernels.py timesformer:8 --top 30

The step is that of `leaps-jax bench` with X3D-XS at 182 px as verifier, as published
unless `--parametrization fourier` asks for the default one. Times are the
profiler's, of one call: they add up to less than the step takes by what lies between
kernels, and to more by those that ran at once. A line has milliseconds of a step, how
often the kernel ran in it, and what it made for what.
"""

import argparse
import collections
import re
import tempfile
from pathlib import Path

import jax
import numpy as np

from leaps_jax import bench
from leaps_jax.cli.main import turn_off_triton_gemm
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading

STEPS = 20
# the first that is a part of a kernel's name
KINDS = {
    "matrix products and convolutions": ("nvjet", "gemm", "xmma", "cutlass", "dgrad"),
    "attention": ("cudnn", "over_time", "in_windows"),
    "norms": ("batch_norm", "layer_norm"),
    "depthwise": ("depthwise", "correlate"),
    "gelu": ("gelu",),
    "pools, rolls, distances, sizes": ("max_pool", "roll", "distances", "resize"),
    "copies": ("emcpy", "emset", "copy", "transpose", "pad", "concatenate"),
    "reductions": ("reduce",),
    "elementwise": ("fusion",),
    "other": ("",),
}


def kernels(
    name: str, batch: int, parametrization: str
) -> list[tuple[float, float, str, str]]:
    """(ms of a step, times in a step, name, what for) of each, the longest first."""
    sizes = {"size": 182} if name.startswith("x3d") else {}
    model, verifier = (
        loading.initialize(n, zoo.KINETICS_400, dtype="bfloat16", **of)
        for n, of in ((name, sizes), ("x3d_xs", {"size": 182}))
    )
    engine, state, data = bench.place(
        model, verifier, batch, STEPS, parametrization=parametrization
    )
    compiled = bench.compile_for(engine.make_steps(STEPS), state, data, engine.frozen)

    def call(state):
        state, metrics = compiled(state, data, engine.frozen)
        np.asarray(metrics["total"])  # done
        return state

    state = call(state)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call(state)
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
    of_device = [plane for plane in planes if "GPU" in plane.name][:1]
    known = purposes(compiled.as_text())
    time, count = collections.Counter(), collections.Counter()
    for line in (line for plane in of_device for line in plane.lines):
        for event in line.events if "Stream" in line.name else ():
            time[event.name] += event.duration_ns / 1e6 / STEPS
            count[event.name] += 1 / STEPS
    return [
        (ms, count[kernel], kernel, known.get(kernel, ""))
        for kernel, ms in time.most_common()
    ]


def purposes(hlo: str) -> dict[str, str]:
    """The shape and the layer that a kernel is named after, of fusions."""
    lines = re.findall(r"%(\S+) = (\S+) .*op_name=\"([^\"]*)\"", hlo)
    return {
        re.sub(r"\.(\d+)$", r"_\1", name): f"{shape} {layer[-80:]}"
        for name, shape, layer in lines
    }


def kind(kernel: str) -> str:
    """The first of `KINDS` that has a word in common with the name of a kernel."""
    return next(
        kind for kind, parts in KINDS.items() if any(part in kernel for part in parts)
    )


def main() -> None:
    """Reads the arguments and prints a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL:BATCH")
    parser.add_argument("--parametrization", default="pixels")
    parser.add_argument("--top", type=int, default=20, metavar="N")
    options = parser.parse_args()
    turn_off_triton_gemm()
    for text in options.models:
        name, batch = text.split(":")
        found = kernels(name, int(batch), options.parametrization)
        if not found:
            raise SystemExit("the profiler saw no kernels of a GPU")
        total, count = (sum(column) for column in list(zip(*found, strict=True))[:2])
        print(f"{text}: {total:.2f} ms of {count:.0f} kernels a step")
        by_kind = collections.Counter()
        for ms, _, kernel, _ in found:
            by_kind[kind(kernel)] += ms
        for name, ms in by_kind.most_common():
            print(f"  {ms:7.3f} {name}")
        for ms, times, kernel, purpose in found[: options.top]:
            print(f"  {ms:7.3f} {times:6.1f}x {kernel[:60]} {purpose}")


if __name__ == "__main__":
    main()
