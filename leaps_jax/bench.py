"""How fast is a step? Time, memory, and how near the device's own limits it comes.

>>> report = measure(slow_r50, x3d_xs, batch=8)                   # doctest: +SKIP
>>> report["ms_per_step"], report["floor_ms"]                     # doctest: +SKIP
(10.54, 1.87)
"""

import dataclasses
import importlib.metadata
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from leaps_jax import floor, synthesis, update
from leaps_jax.config import Config, preset
from leaps_jax.errors import UserError
from leaps_jax.model import Model
from leaps_jax.runtime import parallel, traces
from leaps_jax.runtime.engine import Engine
from leaps_jax.runtime.executable_cache import compile_for
from leaps_jax.runtime.loop_invariants import platform_of
from leaps_jax.update import Batch, State
from leaps_jax.zoo import costs

#: The step of A. Stergiou and N. Deligiannis (ICCV 2023): noise in pixels, a cyclic
#: shift, means as priming.
PUBLISHED: dict[str, float] = {
    "priming": 5.0,
    "priming_per_step": 0.0,
    "spatial_tv": 5.0,
    "temporal_tv": 2.0,
    "roll": 30 / 182,
    "blur": 0.0,
    "temporal_blur": 0.0,
    "view_scale": 0.0,
    "view_shift": 0.0,
    "view_noise": 0.0,
    "view_tint": 0.0,
}


def measure(
    model: Model,
    verifier: Model | None = None,
    *,
    batch: int,
    steps: int = 50,
    calls: int = 5,
    seed: int = 0,
    parametrization: str = Config.parametrization,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Times the update step of LEAPS on all devices.

    It is the step of `synthesize`, run as there: `steps` of them a call of one compiled
    loop. A call is over when its metrics have come to the host.

    Args:
      model: the inverted model, of the zoo; random weights will do.
      verifier: another, or None for a step without one.
      batch: videos, over all devices.
      steps: of one call.
      calls: that are timed, after one that is not.
      seed: of stimuli and labels, which are random.
      parametrization: see `place`.
      progress: called with the number of calls that are over, `calls` + 1 in all.

    Returns:
      JSON-able. `ms_per_step` is the median over calls, in `ms_per_step_of_calls`;
      `compile_seconds` is cold, and `compile_seconds_warm` with the first one's result
      in the cache on disk (where JAX_COMPILATION_CACHE_DIR is set, the cache there may
      make the first warm too). `floor_ms` is the least time in which the device could
      do the step (see `floor`), and `share_of_floor` that by the time of the step.
      `flops_per_step` counts two for every multiply-accumulate of convolutions and
      matrix products of model and verifier, forward and for the gradient of the input;
      `bytes_per_step` is what the operations of the step move at least, in the forms
      that run here. Both are of all devices. `tflops_matmul` and `tb_per_second_copy`
      are the `ceilings` of this device.
    """
    devices, spec = jax.devices(), model.spec
    engine, state, data = place(model, verifier, batch, steps, seed, parametrization)
    compiled, cold, warm = _compile(
        lambda: engine.make_steps(steps), state, data, engine.frozen
    )
    times = []
    for call in range(1 + calls):
        start = time.perf_counter()
        state, metrics = compiled(state, data, engine.frozen)
        total = np.asarray(metrics["total"])
        times.append(1e3 * (time.perf_counter() - start) / steps)
        if progress:
            progress(call + 1)
    if not np.isfinite(total).all():
        what = "the loss is not finite; give more frames or a larger size"
        raise UserError(f"frames={spec.frames} size={spec.size}: {what}")
    milliseconds = statistics.median(times[1:])
    macs = sum(costs.macs_with_gradient(m.module) for m in (model, verifier) if m)
    flops = 2 * batch * macs
    matmul, copy = ceilings(devices[0])
    moved = _bytes_of_a_step(engine, state, data)
    least = floor.milliseconds(flops / len(devices), moved, matmul, copy)
    return {
        "model": spec.name,
        "verifier": verifier and verifier.spec.name,
        "batch": batch,
        "frames": spec.frames,
        "size": spec.size,
        "parametrization": parametrization,
        "dtype": jnp.dtype(getattr(model.module, "dtype", None) or "float32").name,
        "ms_per_step": round(milliseconds, 3),
        "ms_per_step_of_calls": [round(t, 3) for t in times[1:]],
        "floor_ms": round(least, 3),
        "share_of_floor": round(least / milliseconds, 4),
        "video_steps_per_second": round(1e3 * batch / milliseconds, 2),
        "compile_seconds": round(cold, 1),
        "compile_seconds_warm": round(warm, 1),
        "peak_gib": _peak_gib(devices),
        "flops_per_step": flops,
        "bytes_per_step": moved * len(devices),
        "tflops_matmul": round(matmul / 1e12, 2),
        "tb_per_second_copy": round(copy / 1e12, 3),
        "devices": len(devices),
        "device": devices[0].device_kind,
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")
        },
    }


def place(
    model: Model,
    verifier: Model | None,
    batch: int,
    steps: int,
    seed: int = 0,
    parametrization: str = Config.parametrization,
) -> tuple[Engine, State, Batch]:
    """The synthesis that is timed, on all devices; see `measure` for the arguments.

    With pixels it is the step as published, which `benchmarks/torch_peer.py` does, too;
    with another parametrization that of its preset.
    """
    published = PUBLISHED if parametrization == "pixels" else {}
    config = preset("leaps", parametrization, **published)
    config = dataclasses.replace(config, steps=10**6, steps_per_call=steps)
    spec, random = model.spec, np.random.default_rng(seed)
    shape = (batch, spec.frames, spec.size, spec.size, 3)
    problem = synthesis.prepare(
        model,
        random.random(shape, np.float32),
        random.integers(spec.num_classes, size=batch).tolist(),
        verifier,
        config,
    )
    engine = Engine(problem)
    return engine, *engine.place(problem.labels, problem.stimuli)


def ceilings(device: jax.Device) -> tuple[float, float]:
    """The limits of a device: FLOP/s of a matrix product, bytes/s of a copy.

    A product of 8192 x 8192 random bfloat16 matrices and a copy of 1 GiB, read and
    written; on a CPU of 1024 x 1024 float32 ones and of 64 MiB.
    """
    cpu = device.platform == "cpu"
    n, dtype = (1024, jnp.float32) if cpu else (8192, jnp.bfloat16)
    with jax.default_device(device):
        a = jax.random.normal(jax.random.key(0), (n, n), dtype)
        x = jnp.zeros(2 ** (24 if cpu else 28), jnp.float32)
        product = _seconds(jax.jit(jnp.matmul), a, a)
        copy = _seconds(jax.jit(lambda x: x + 1), x)
    return 2 * n**3 / product, 2 * x.nbytes / copy


def _seconds(function: Callable, *arguments: jax.Array, repeats: int = 20) -> float:
    jax.block_until_ready(function(*arguments))
    start = time.perf_counter()
    for _ in range(repeats):
        result = function(*arguments)
    jax.block_until_ready(result)  # the last of a queue
    return (time.perf_counter() - start) / repeats


def _compile(make: Callable[[], Any], *arguments: Any) -> tuple[Any, float, float]:
    """The compiled function, and the seconds that took cold and from the cache."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for name, value in zip(names, (before[names[0]] or folder, 0, 0), strict=True):
            jax.config.update(name, value)
        try:
            for _ in range(2):
                jax.clear_caches()
                compilation_cache.reset_cache()
                start = time.perf_counter()
                compiled = compile_for(make(), *arguments)
                seconds.append(time.perf_counter() - start)
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
    cold, warm = seconds
    return compiled, cold, warm


def _bytes_of_a_step(engine: Engine, state: State, batch: Batch) -> int:
    """The bytes that one device moves at least in an update step."""
    device = engine.devices[0]
    own, targets = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (state, batch)
    )
    found = traces.operations(
        update.make_update_step(engine.setup),
        own,
        targets,
        engine.frozen,
        platform=platform_of(device),
        axes=[(parallel.AXIS, len(engine.devices))],
    )
    changing = jax.tree.leaves((own.parameters, own.optimizer))
    kept = sum(x.size * x.dtype.itemsize for x in changing)
    return floor.bytes_moved(found) + 2 * kept  # read, and written


def _peak_gib(devices: list[jax.Device]) -> float | None:
    """The most memory that one device had in use; None where it does not tell."""
    known = [device.memory_stats() or {} for device in devices]
    peak = max(stats.get("peak_bytes_in_use", 0) for stats in known)
    return round(peak / 2**30, 3) if peak else None
