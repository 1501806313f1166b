"""Compiles steps for a GPU that is not here, which shows what it would refuse.

    pip install 'jax[cuda13]'
    python benchmarks/absent_gpu.py 7.5 x3d_xs_small:2 timesformer_small:2

The first argument is a compute capability: 7.5 is a T4, 8.0 an A100, 8.9 an L4, 9.0 an
H100; the others are MODEL:BATCH or MODEL:BATCH:SIZE. Without tuning, so that nothing of
this tells how fast a program is. Prints how many calls of Triton's kernels and of
cuDNN's convolutions and attention each has.
"""

import argparse
import contextlib
import importlib.util
import os
import re
from unittest import mock

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
)

import jax
from jax.experimental import topologies

from leaps_jax import Config, objectives, update
from leaps_jax.cli.main import turn_off_triton_gemm
from leaps_jax.kernels import dispatch
from leaps_jax.runtime import engine, executable_cache
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading

# bytes of shared memory: of a multiprocessor, and the most of one block
SHARED = {"7": (65536, 65536), "8.0": (167936, 166912), "8": (102400, 101376)}
SHARED["9"] = (233472, 232448)
# by the first digit of the capability
KIND = {"7": "Tesla T4", "8": "NVIDIA A100-SXM4-40GB", "9": "NVIDIA H100"}
_OF_JAX = "jax._src.cudnn.fused_attention_stablehlo"
CALLS = {
    "Triton": "xla.gpu.triton",
    "convolutions": r"cudnn\$conv",
    "attention": r"cudnn\$fmha",
}


def absent(capability: str) -> list[jax.Device]:
    """One device that programs can be compiled for."""
    major, minor = capability.split(".")
    shared, of_block = SHARED.get(capability) or SHARED[major]
    threads = 1024 if major == "7" else 2048
    config = f"""
        gpu_device_info {{
            cuda_compute_capability {{ major: {major} minor: {minor} }}
            core_count: 100 fpus_per_core: 128 clock_rate_ghz: 1.5
            threads_per_warp: 32 threads_per_block_limit: 1024
            threads_per_core_limit: {threads}
            shared_memory_per_core: {shared} shared_memory_per_block: 49152
            shared_memory_per_block_optin: {of_block}
            registers_per_core_limit: 65536 registers_per_block_limit: 65536
            block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
            block_dim_limit_z: 65535
            memory_bandwidth: 1000000000000 l2_cache_size: 40000000
            device_memory_size: 80000000000
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 12 }}
        runtime_version {{ major: 13 minor: 0 }}
        device_description_str: "absent"
    """
    return topologies.get_topology_desc(
        "absent", "cuda", target_config=config, topology="1x1x1"
    ).devices


def compile_steps(text: str, devices: list[jax.Device], dtype: str) -> list[str]:
    """The HLO text of all executables that a run of one model compiles."""
    name, batch, *size = text.split(":")
    sizes = {"size": int(size[0])} if size else {}
    model = loading.initialize(name, zoo.KINETICS_400, dtype=dtype, **sizes)
    config = Config(steps=2)
    objective = objectives.leaps(config).without_verifier()
    setup = update.make_setup(model, None, objective, config)
    inverting = engine.Engine(setup, devices)
    compiled: list[str] = []

    def trace(function, *arguments):
        out_info, compile = executable_cache.trace(function, *arguments)

        def kept():
            executable = compile()
            compiled.append(executable.as_text())
            return executable

        return executable_cache.Traced(out_info, kept)

    with mock.patch.object(engine, "trace", trace):
        inverting.compile(int(batch))
    return compiled


def _kernels_are_for(kind: str) -> contextlib.AbstractContextManager:
    """Makes Triton kernels for this kind; JAX 0.11 asks the GPU at hand for its own."""
    module = "jax._src.pallas.triton.gpu_info"
    if importlib.util.find_spec(module) is None:
        return contextlib.nullcontext()
    return mock.patch(f"{module}.get_device_kind", lambda: kind)


def main() -> None:
    """Reads the arguments and prints a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capability")
    parser.add_argument("models", nargs="+", metavar="MODEL:BATCH[:SIZE]")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    turn_off_triton_gemm()
    devices = absent(options.capability)
    capability = float(options.capability)
    kind = KIND[options.capability.split(".")[0]]
    with (
        _kernels_are_for(kind),
        mock.patch.object(jax, "default_backend", lambda: "gpu"),
        mock.patch.object(executable_cache, "_start_cudnn"),
        mock.patch.object(dispatch, "compute_capability", lambda: capability),
        # JAX asks the machine at hand how wide a head of cuDNN's attention may be
        mock.patch(
            f"{_OF_JAX}.check_compute_capability", lambda c: float(c) <= capability
        ),
    ):
        for text in options.models:
            whole = "\n".join(compile_steps(text, devices, options.dtype))
            found = {kind: len(re.findall(of, whole)) for kind, of in CALLS.items()}
            print(text, ", ".join(f"{n} of {kind}" for kind, n in found.items()))


if __name__ == "__main__":
    main()
