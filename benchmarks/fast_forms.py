"""What each fast form gains: a whole step with all of them, and without one. For GPUs.

    python benchmarks/fast_forms.py timesformer:8 normalization gelu linear pad_tokens

A form is a module of `leaps_jax.kernels`, whose plain forms then run, or `pad_tokens`,
`pad_channels` or `kernel_order` (convolution kernels stored with outputs first). The
step is that of `leaps-jax bench` with X3D-XS at 182 px as verifier. Calls of all
programs take turns. What was found is in results/fast_forms.md.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np

from leaps_jax import bench
from leaps_jax.cli.main import turn_off_triton_gemm
from leaps_jax.kernels import convolutions, dispatch
from leaps_jax.models import timesformer, uniformerv2, vivit, x3d
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading

MODULES = (
    "attention",
    "convolutions",
    "depthwise",
    "gelu",
    "linear",
    "normalization",
    "pooling",
    "resize",
    "window_attention",
)
OTHERS = {
    "pad_tokens": [
        mock.patch.object(module, "pad_tokens", lambda x, dtype: x)
        for module in (timesformer, uniformerv2, vivit)
    ],
    "pad_channels": [mock.patch.object(x3d, "channel_padding", lambda channels: 0)],
    "kernel_order": [
        mock.patch.object(
            convolutions, "_in_order_of_cudnn", convolutions._two_dimensional
        )
    ],
}


@contextlib.contextmanager
def without(form: str | None) -> Iterator[None]:
    """A context in which programs are traced without one fast form."""
    by_platform = dispatch.by_platform

    def choose(plain, **forms):
        module = sys._getframe(1).f_globals["__name__"]
        if module == f"leaps_jax.kernels.{form}":
            return plain
        return by_platform(plain, **forms)

    patches = OTHERS.get(form, [mock.patch.object(dispatch, "by_platform", choose)])
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        jax.clear_caches()
        yield
    jax.clear_caches()


def main() -> None:
    """Reads the arguments, compiles every program, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL:BATCH")
    parser.add_argument("forms", nargs="+", choices=[*MODULES, *OTHERS])
    parser.add_argument("--parametrization", default="pixels")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--steps", type=int, default=20, help="of a call")
    parser.add_argument("--calls", type=int, default=11)
    options = parser.parse_args()
    turn_off_triton_gemm()
    name, batch = options.model.split(":")
    size = options.size or (182 if name.startswith("x3d") else None)
    model, verifier = (
        loading.initialize(n, zoo.KINETICS_400, dtype="bfloat16", **sizes)
        for n, sizes in (
            (name, {"frames": options.frames, "size": size}),
            ("x3d_xs", {"size": 182}),
        )
    )
    programs = {}
    for form in (None, *options.forms):
        with without(form):
            engine, state, data = bench.place(
                model,
                verifier,
                int(batch),
                options.steps,
                parametrization=options.parametrization,
            )
            steps = engine.make_steps(options.steps)
            compiled = bench.compile_for(steps, state, data, engine.frozen)
            programs[form] = compiled, engine.frozen
    times: dict[str | None, list[float]] = {form: [] for form in programs}
    for _ in range(1 + options.calls):
        for form, (compiled, frozen) in programs.items():
            start = time.perf_counter()
            state, metrics = compiled(state, data, frozen)
            assert np.isfinite(np.asarray(metrics["total"])).all()
            times[form].append(1e3 * (time.perf_counter() - start) / options.steps)
    whole = statistics.median(times[None][1:])  # the first is no measure
    print(f"| {options.model} | ms | slowest call | without it |\n" + "|---" * 4 + "|")
    for form, found in times.items():
        median = statistics.median(found[1:])
        change = f"{median / whole - 1:+.1%}" if form else ""
        print(f"| {form or 'all'} | {median:.2f} | {max(found[1:]):.2f} | {change} |")


if __name__ == "__main__":
    main()
