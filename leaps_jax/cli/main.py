"""The command `leaps-jax`.

Exit codes: 0 for success, 2 for a mistake of the user's (one line that names the
argument, its value and the remedy), 1 when a run failed, 130 after Ctrl-C.
"""

import argparse
import os
import sys

import jax

from leaps_jax.cli import (
    accuracy,
    actions,
    arguments,
    bench,
    convert,
    demo,
    evaluate,
    memory,
    models,
    synthesize,
    train,
)
from leaps_jax.errors import UserError
from leaps_jax.runtime import executable_cache
from leaps_jax.runtime.engine import NotFiniteError

COMMANDS = (
    models,
    convert,
    synthesize,
    train,
    accuracy,
    evaluate,
    bench,
    demo,
    actions,
)


def main(words: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = argparse.Namespace(command=None)
    try:
        parser = arguments.parser(*(command.add for command in COMMANDS))
        options = parser.parse_args(words)
        options.words = sys.argv[1:] if words is None else words
        turn_off_triton_gemm()
        _use_compilation_cache()
        return options.run(options)
    except UserError as error:
        print(f"leaps-jax: error: {error}", file=sys.stderr)
        return 2
    except NotFiniteError as error:
        print(f"leaps-jax: failed: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        line = memory.too_large(options, error)
        if line is None:
            raise
        print(line, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("leaps-jax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def turn_off_triton_gemm() -> None:
    """Sets an XLA flag; JAX reads these when it starts a device.

    XLA's Triton GEMM fusion aborts the process on some products of a folded
    (batch x time) reshape (JAX 0.11.2, H200). A value that the user set stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_enable_triton_gemm" not in flags:
        flags = f"{flags} --xla_gpu_enable_triton_gemm=false".strip()
        os.environ["XLA_FLAGS"] = flags


def _use_compilation_cache() -> None:
    """Keeps compiled steps on disk, so that the second start of a job is quick."""
    executable_cache.use_folder_of_user()
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
