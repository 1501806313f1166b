"""Compiled programs on disk, and what else only a trace would tell.

JAX's own cache spares the compiler's work, but a program must be traced and lowered to
be looked up in it, which takes longer than all else that a start does. Here the
compiled program itself is kept, under a digest of what decides it: versions, the
sources of this package, the devices, JAX's settings, the shapes of the arguments, and
what the function was made of. What has no such description, such as a network or a
term that is no part of this package, is compiled or traced as ever.

>>> described((1, "leaps", True))
"(1,'leaps',True)"
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pickle
import platform
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from leaps_jax import files

T = TypeVar("T")

# Those that were not used for longest go first.
_KEPT = 64  # programs
_FOUND = 512  # findings of a trace
_ROOT = Path(__file__).parent.parent  # of the package
_DECIDING = ("jax", "flax", "optax", "numpy", "nvidia")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def folder() -> Path | None:
    """Where JAX keeps its own cache, if that is a folder and in use."""
    kept = jax.config.values["jax_compilation_cache_dir"]
    used = jax.config.values["jax_enable_compilation_cache"]
    return Path(kept) if kept and used and "://" not in kept else None


def remembered(what: str, made_of: Any, find: Callable[[], T]) -> T:
    """What a trace finds, from disk where it was found before.

    Args:
      what: is found, in a word.
      made_of: all that decides it, beside the package itself.
      find: finds it; JSON-able. Called where there is no `folder`, too.
    """
    cache = folder()
    if cache is None:
        return find()
    try:
        parts = [what, described(made_of), *_settings()]
    except LookupError:
        return find()
    path = cache / "found" / _digest(parts)
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        os.utime(path)
        return found
    found = find()
    with contextlib.suppress(OSError):
        _keep(path, json.dumps(found).encode(), _FOUND)
    return found


# The kernels of a step are then launched as graphs, and those that need not wait for
# each other, of the model and its verifier above all, run at once: 16 to 21 % of a step
# on two H200.
_OPTIONS_OF_A_GPU = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN"
    ",DYNAMIC_SLICE_FUSION,CONVOLUTION,COLLECTIVES",
    "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
}


def compile_for(function: Any, *arguments: Any) -> Any:
    """A jitted function, compiled for arguments like these.

    What XLA_FLAGS say of an option stays.
    """
    options = {}
    if jax.default_backend() == "gpu":
        _start_cudnn()
        set_before = os.environ.get("XLA_FLAGS", "")
        options = {k: v for k, v in _OPTIONS_OF_A_GPU.items() if k not in set_before}
    return function.lower(*arguments).compile(compiler_options=options)


@functools.cache
def _start_cudnn() -> None:
    """Runs a convolution on each GPU, outside of a graph of kernels.

    cuDNN starts with the first one, and cannot in a graph. Who compiles a program has
    tried convolutions out; who loads one, from JAX's own cache too, has not.
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
    jax.block_until_ready(jax.pmap(convolve, devices=devices)(x, kernel))


@dataclasses.dataclass(frozen=True)
class Programs:
    """A folder of compiled programs.

    A program that is loaded runs as code of yours: the folder must be yours alone to
    write, as that of JAX's cache must.

    >>> programs = Programs(Path("cache"))                        # doctest: +SKIP
    >>> synthesize(model, stimuli, labels=[3], programs=programs) # doctest: +SKIP
    """

    folder: Path

    def compiled(
        self,
        function: Any,
        arguments: Sequence[Any],
        devices: Sequence[jax.Device],
        made_of: Any,
    ) -> Any:
        """A jitted function, compiled for arguments like these.

        Args:
          function: what `jax.jit` or `jax.pmap` returned.
          arguments: of the first call.
          devices: on which it runs, in their order.
          made_of: all that decides what the function does, beside the package itself.
        """
        try:
            path = self.folder / _key(arguments, devices, made_of)
        except LookupError:
            return compile_for(function, *arguments)
        # Whatever is wrong with a file, the program can be compiled.
        with contextlib.suppress(Exception):
            program = _read(path, devices)
            if jax.default_backend() == "gpu":
                _start_cudnn()
            return program
        with _without_cache():
            program = compile_for(function, *arguments)
        with contextlib.suppress(Exception):
            _write(path, program)
        return program


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """A program that came from JAX's cache cannot be kept: on a CPU it lacks parts."""
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
    program = serialize_executable.deserialize_and_load(
        payload, in_tree, out_tree, execution_devices=devices
    )
    os.utime(path)
    return program


def _write(path: Path, program: Any) -> None:
    content = pickle.dumps(serialize_executable.serialize(program))
    _keep(path, hashlib.sha256(content).digest() + content, _KEPT)


def _keep(path: Path, content: bytes, most: int) -> None:
    """Writes a file, whole at any time, and removes the oldest beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, content)
    by_age = sorted(path.parent.iterdir(), key=lambda old: old.stat().st_mtime)
    for old in by_age[:-most]:
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
    return _digest(parts)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _settings() -> list[str]:
    return [
        *[f"{name}={value}" for name, value in sorted(jax.config.values.items())],
        *[f"{name}={os.environ.get(name)}" for name in _FLAGS],
        _machine(),
    ]


@functools.cache
def _machine() -> str:
    """Versions, sources and the processor, which decides the programs of a CPU."""
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
    """A text that is equal for values that make the same program, in any process.

    Functions and classes stand for their source, which must be of this package, and
    for what they closed over.

    Raises:
      LookupError: there is none.
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
