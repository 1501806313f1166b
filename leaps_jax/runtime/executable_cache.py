"""A cache of executables on disk, which spares tracing as well as compiling.

JAX's own cache spares compiling alone: its key is the lowered function, so that each
start traces and lowers anew. Here an executable is stored under a digest of all that
determines it: versions, the sources of this package, devices, JAX's settings, the
shapes of the arguments, and a description of the function. What has no description,
such as a network or a term from outside this package, is compiled each time.

An executable runs as code, and JAX reads it as a pickle. So each file is signed with a
key that the user alone can read, and nothing of a file is parsed before its owner, its
permissions and its signature were checked.

>>> described((1, "leaps", True))
"(1,'leaps',True)"
"""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import hmac
import importlib.metadata
import os
import pickle
import platform
import re
import secrets
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
_NAME = r"\.?[0-9a-f]{64}(\.[0-9a-f]{8}\.tmp)?"  # of a file, or while it is written
_BYTES = 32  # of the key, and of a signature
_JAX_CACHE = "jax_enable_compilation_cache"
_JAX_CACHE_SWITCH = threading.Lock()
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def folder() -> Path | None:
    """The folder of JAX's own compilation cache; None where it has none or is off."""
    path = jax.config.values["jax_compilation_cache_dir"]
    used = jax.config.values[_JAX_CACHE]
    return Path(path) if path and used and "://" not in path else None


def use_folder_of_user() -> None:
    """Gives JAX's compilation cache a folder, and turns it off where that is not safe.

    All that is compiled is kept in it, however short that took.

    JAX runs what it finds there and checks nothing. The folder is that of
    `JAX_COMPILATION_CACHE_DIR`, or else `leaps_jax` among the user's caches. Where
    others can write to it, a line says so.
    """
    # Of a disk that can only be read, one line of ours is enough.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache")
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    given = "JAX_COMPILATION_CACHE_DIR" in os.environ
    try:
        if not given:
            default = _of_user("XDG_CACHE_HOME", ".cache")
            jax.config.update("jax_compilation_cache_dir", str(default))
        if (path := folder()) is not None:
            _check(path)
            if not given and path.stat().st_mode & 0o077:  # of an earlier version
                with contextlib.suppress(OSError):
                    path.chmod(0o700)
    except (OSError, RuntimeError) as error:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()  # else it goes on as it began
        remedy = "set JAX_COMPILATION_CACHE_DIR to a folder of your own"
        _tell(f"{_reason(error)}; nothing compiled is kept; {remedy}")


def _check(path: Path) -> None:
    """Raises OSError where others can write to a folder or to the files in it."""
    if not path.is_absolute():  # else any folder could bring its own
        raise OSError(None, "is no absolute path", str(path))
    files.make_private(path)
    if path.stat().st_mode & 0o011:  # others get at what is in it
        for entry in path.iterdir():
            with contextlib.suppress(FileNotFoundError):  # removed by another process
                files.check_own(entry.lstat(), str(entry))


def _of_user(variable: str, default: str) -> Path:
    """This package's folder where XDG has it: a path that is not absolute is none.

    Raises:
      RuntimeError: the user has no home.
    """
    given = Path(os.environ.get(variable, ""))
    return (given if given.is_absolute() else Path.home() / default) / _ROOT.name


def _secret() -> bytes:
    """The key that signs what this user keeps, made at its first use.

    Raises:
      OSError, RuntimeError: it cannot be made or read, or is open to others.
    """
    path = _of_user("XDG_CONFIG_HOME", ".config") / "cache.key"
    files.make_private(path.parent)
    if not path.exists():
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        files.write(new, secrets.token_bytes(_BYTES), private=True)
        try:
            os.link(new, path)
        except FileExistsError:  # another process was first
            pass
        finally:
            new.unlink()
    key = files.read_private(path)
    if len(key) != _BYTES:
        raise OSError(None, "is damaged", str(path))
    return key


def _reason(error: Exception) -> str:
    """A file and what is wrong with it."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)


@functools.cache  # the same is said once
def _tell(line: str) -> None:
    print(f"compile cache: {line}", file=sys.stderr)


_OPTIONS: dict[str, dict[str, Any]] = {
    "gpu": {
        # CUDA graphs, in which kernels that do not depend on each other run at the
        # same time, above all those of the model and of its verifier.
        "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN"
        ",DYNAMIC_SLICE_FUSION,CONVOLUTION,COLLECTIVES",
        "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
        # Queries, keys and values stay three products: cuBLAS adds the bias to each.
        # After a merged one, biases take kernels of their own.
        "xla_gpu_dot_merger_threshold_mb": 0,
    },
    # LLVM's level 3 compiles a step for a fifth longer, and the step is no faster.
    "cpu": {"xla_backend_optimization_level": 2},
}


class Traced(NamedTuple):
    """A function that is traced for arguments of some shapes.

    Attributes:
      out_info: shapes of its outputs.
      compile: has XLA compile it, in any thread; gives the executable.
    """

    out_info: Any
    compile: Callable[[], Any]


def trace(function: Any, *arguments: Any) -> Traced:
    """Traces a jitted function for arguments of these shapes.

    Options that `XLA_FLAGS` sets keep their values.
    """
    backend, flags = jax.default_backend(), os.environ.get("XLA_FLAGS", "")
    if backend == "gpu":
        _start_cudnn()
    options = _OPTIONS.get(backend, {})
    options = {k: v for k, v in options.items() if k not in flags}
    with _without_collector():
        lowered = function.lower(*arguments)
    compile = functools.partial(lowered.compile, compiler_options=options)
    return Traced(lowered.out_info, compile)


def compile_for(function: Any, *arguments: Any) -> Any:
    """Compiles a jitted function for arguments of these shapes."""
    return trace(function, *arguments).compile()


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Turns off Python's garbage collector while a function is traced and lowered.

    A trace of a network is a million objects that stay, and the collector would go
    through them again and again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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

    A file that is damaged, or that the same user did not write, is deleted and the
    function compiled anew. Where the folder or the key of the user cannot be used, all
    is compiled. Each is told in one line.

    >>> cache = ExecutableCache(Path("cache"))                    # doctest: +SKIP
    >>> synthesize(model, stimuli, labels=[3], executables=cache)    # doctest: +SKIP

    Attributes:
      folder: made at the first use.
    """

    folder: Path

    def traced(
        self,
        function: Any,
        arguments: Sequence[Any],
        devices: Sequence[jax.Device],
        made_of: Any,
    ) -> Traced:
        """The kept executable of a jitted function, or its trace, kept once compiled.

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
            return trace(function, *arguments)
        try:
            key = _secret()
            files.make_private(path.parent)
        except (OSError, RuntimeError) as error:
            remedy = "delete it or change its permissions"
            _tell(f"{_reason(error)}; compiled steps are not kept; {remedy}")
            return trace(function, *arguments)
        kept = _kept(path, key, devices)
        if kept is not None:
            if jax.default_backend() == "gpu":
                _start_cudnn()
            return Traced(kept.out_info, lambda: kept)
        traced = trace(function, *arguments)

        def compile() -> Any:
            with _without_jax_cache():
                executable = traced.compile()
            try:
                _write(path, key, executable)
            except OSError as error:
                _tell(f"{path.parent}: cannot be written ({error.strerror})")
            return executable

        return Traced(traced.out_info, compile)


@contextlib.contextmanager
def with_jax_cache() -> Iterator[None]:
    """A block in which JAX's compilation cache is as the user set it.

    Steps are compiled with that cache off, and the setting is that of all threads.
    """
    with _JAX_CACHE_SWITCH:
        yield


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
    """An executable from JAX's cache cannot be serialised: on a CPU it lacks parts."""
    with _JAX_CACHE_SWITCH:  # the setting is that of all threads
        before = getattr(jax.config, _JAX_CACHE)
        try:
            jax.config.update(_JAX_CACHE, False)
            compilation_cache.reset_cache()  # else it goes on as it began
            yield
        finally:
            jax.config.update(_JAX_CACHE, before)
            compilation_cache.reset_cache()


def _kept(path: Path, key: bytes, devices: Sequence[jax.Device]) -> Any | None:
    """The executable of a file; None where there is none or it had to be deleted."""
    try:
        content = memoryview(files.read_private(path))
        if not hmac.compare_digest(
            _signature(path, key, content[_BYTES:]), content[:_BYTES]
        ):
            raise OSError(None, "is not what this user wrote")
        payload, in_tree, out_tree = pickle.loads(content[_BYTES:])
        executable = serialize_executable.deserialize_and_load(
            payload, in_tree, out_tree, execution_devices=devices
        )
    except FileNotFoundError:
        return None
    except Exception as error:  # of a program that does not load, JAX raises many kinds
        reason = getattr(error, "strerror", None) or "cannot be loaded"
        _tell(f"{path}: {reason}; deleted and compiled anew")
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):  # of a disk that can only be read
        os.utime(path)
    return executable


def _signature(path: Path, key: bytes, content: bytes | memoryview) -> bytes:
    """Covers the name of the file, too, so that no program can replace another."""
    signed = hmac.new(key, path.name.encode(), hashlib.sha256)
    signed.update(content)
    return signed.digest()


def _write(path: Path, key: bytes, executable: Any) -> None:
    """Writes a file atomically, and removes the oldest where there are too many."""
    try:
        content = pickle.dumps(serialize_executable.serialize(executable))
    except (ValueError, NotImplementedError):  # there are kinds that cannot be kept
        return
    content = _signature(path, key, content) + content
    files.write(path, content, private=True)
    own = (old for old in path.parent.iterdir() if re.fullmatch(_NAME, old.name))
    by_age = sorted(own, key=lambda old: old.lstat().st_mtime)
    for old in by_age[:-_MOST]:
        old.unlink(missing_ok=True)


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
    deciding = dict(jax.config.values)
    del deciding[_JAX_CACHE]  # another thread may have it off while it compiles
    return [
        *[f"{name}={value}" for name, value in sorted(deciding.items())],
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
