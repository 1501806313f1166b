"""A cache of executables on disk, which spares tracing as well as compiling.

JAX's own cache spares compiling alone: its key is the lowered function, so that each
start traces and lowers anew. Here an executable is stored under a digest of all that
determines it: versions, the sources of this package, devices, JAX's settings, the
shapes of the arguments, and a description of the function. What has no description,
such as a network or a term from outside this package, is compiled each time.

>>> described((1, "leaps", True))
"(1,'leaps',True)"
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import pickle
import platform
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from leaps_jax import files
from leaps_jax.runtime import parallel

_MOST = 64  # files; those unused for longest are removed first
_ROOT = Path(__file__).parent.parent  # of the package
_DECIDING = ("jax", "flax", "optax", "numpy", "nvidia")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def folder() -> Path | None:
    """The folder of JAX's own compilation cache; None where it has none or is off."""
    path = jax.config.values["jax_compilation_cache_dir"]
    used = jax.config.values["jax_enable_compilation_cache"]
    return Path(path) if path and used and "://" not in path else None


# CUDA graphs, in which kernels that do not depend on each other run at the same time,
# above all those of the model and of its verifier.
_GPU_OPTIONS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN"
    ",DYNAMIC_SLICE_FUSION,CONVOLUTION,COLLECTIVES",
    "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
}


def compile_for(function: Any, *arguments: Any) -> Any:
    """Compiles a jitted function for arguments of these shapes.

    Options that `XLA_FLAGS` sets keep their values.
    """
    options = {}
    if jax.default_backend() == "gpu":
        _start_cudnn()
        flags = os.environ.get("XLA_FLAGS", "")
        options = {k: v for k, v in _GPU_OPTIONS.items() if k not in flags}
    return function.lower(*arguments).compile(compiler_options=options)


@functools.cache
def _start_cudnn() -> None:
    """Runs a convolution on each GPU, outside of any CUDA graph.

    cuDNN initialises itself at its first convolution, and cannot do so inside a graph.
    Compiling runs convolutions to choose among them; loading an executable does not.
    """
    devices = jax.local_devices()
    x = np.ones((len(devices), 1, 8, 8, 8), np.float32)
    kernel = np.ones((len(devices), 3, 3, 8, 8), np.float32)
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    mapped = parallel.map_over_devices(convolve, devices, in_axes=0, out_axes=0)
    jax.block_until_ready(mapped(x, kernel))


@dataclasses.dataclass(frozen=True)
class ExecutableCache:
    """A folder of compiled functions, from which later processes start sooner.

    What is loaded from it runs as code: nobody else may be able to write to it.

    >>> cache = ExecutableCache(Path("cache"))                    # doctest: +SKIP
    >>> synthesize(model, stimuli, labels=[3], programs=cache)    # doctest: +SKIP

    Attributes:
      folder: made at the first write.
    """

    folder: Path

    def compiled(
        self,
        function: Any,
        arguments: Sequence[Any],
        devices: Sequence[jax.Device],
        made_of: Any,
    ) -> Any:
        """Loads the executable of a jitted function, or compiles and stores it.

        Args:
          function: what `jax.jit` or `parallel.map_over_devices` returned.
          arguments: of the first call, or their shapes.
          devices: on which it runs, in order.
          made_of: all that determines the function besides the package's sources; see
            `described`.
        """
        try:
            path = self.folder / _key(arguments, devices, made_of)
        except LookupError:
            return compile_for(function, *arguments)
        # whatever is wrong with a file, the function can be compiled
        with contextlib.suppress(Exception):
            executable = _read(path, devices)
            if jax.default_backend() == "gpu":
                _start_cudnn()
            return executable
        with _without_jax_cache():
            executable = compile_for(function, *arguments)
        with contextlib.suppress(Exception):
            _write(path, executable)
        return executable


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
    """An executable from JAX's cache cannot be serialised: on a CPU it lacks parts."""
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    try:
        jax.config.update(name, False)
        compilation_cache.reset_cache()  # else it goes on as it began
        yield
    finally:
        jax.config.update(name, before)
        compilation_cache.reset_cache()


def _read(path: Path, devices: Sequence[jax.Device]) -> Any:
    digest, content = (content := path.read_bytes())[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError
    payload, in_tree, out_tree = pickle.loads(content)
    executable = serialize_executable.deserialize_and_load(
        payload, in_tree, out_tree, execution_devices=devices
    )
    os.utime(path)
    return executable


def _write(path: Path, executable: Any) -> None:
    """Writes a file atomically, and removes the oldest where there are too many."""
    content = pickle.dumps(serialize_executable.serialize(executable))
    content = hashlib.sha256(content).digest() + content
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, content, private=True)
    by_age = sorted(path.parent.iterdir(), key=lambda old: old.stat().st_mtime)
    for old in by_age[:-_MOST]:
        old.unlink()


def _key(arguments: Any, devices: Sequence[jax.Device], made_of: Any) -> str:
    parts = [
        described(made_of),
        str(jax.tree.structure(arguments)),
        *[f"{jax.typeof(x)} {x.sharding}" for x in jax.tree.leaves(arguments)],
        *[f"{d.id} {d.device_kind} {d.client.platform_version}" for d in devices],
        f"{jax.device_count()} {jax.process_index()} of {jax.process_count()}",
        *_settings(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _settings() -> list[str]:
    return [
        *[f"{name}={value}" for name, value in sorted(jax.config.values.items())],
        *[f"{name}={os.environ.get(name)}" for name in _FLAGS],
        _machine(),
    ]


@functools.cache
def _machine() -> str:
    """Versions, sources, and the processor, on which executables for a CPU depend."""
    found = importlib.metadata.distributions()
    parts = sorted(f"{d.name} {d.version}" for d in found if d.name)
    parts = [part for part in parts if part.startswith(_DECIDING)]
    parts += _sources(_ROOT)
    parts += [platform.python_version(), platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        parts += sorted({s for s in lines if s.startswith(("flags", "Features"))})
    return "\n".join(parts)


def _sources(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in sorted(root.rglob("*.py"))
    ]


def described(value: Any) -> str:
    """A text that is equal, in any process, for values that give the same executable.

    A function is described by its place in the sources of this package and by the
    values of its closure and defaults, a dataclass by its fields.

    Raises:
      LookupError: the value, or a part of it, is not of this package.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"({','.join(map(described, value))})"
    if isinstance(value, frozenset):
        return f"{{{','.join(sorted(map(described, value)))}}}"
    if isinstance(value, np.dtype | type(jnp.float32)):
        return jnp.dtype(value).name
    if isinstance(value, types.FunctionType):
        code = value.__code__  # a wrapper has the names of what it wraps
        if Path(code.co_filename).is_relative_to(_ROOT):
            closed = [cell.cell_contents for cell in value.__closure__ or ()]
            named = sorted((value.__kwdefaults__ or {}).items())
            where = f"{Path(code.co_filename).relative_to(_ROOT)}:{code.co_firstlineno}"
            return where + described([*closed, *(value.__defaults__ or ()), *named])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        if kind.__module__.startswith(f"{_ROOT.name}."):
            fields = [getattr(value, f.name) for f in dataclasses.fields(value)]
            return f"{kind.__module__}.{kind.__qualname__}" + described(fields)
    raise LookupError(f"{value!r} is no part of {_ROOT.name}")
