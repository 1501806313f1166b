"""The command `leaps-jax`.

Exit codes: 0 for success, 2 for a mistake of the user's (one line that names the
argument, its value and the remedy), 1 when a run or the machine failed, 130 after
Ctrl-C, SIGTERM or SIGHUP.
"""

import argparse
import os
import sys
from typing import NoReturn

import jax

from leaps_jax.cli import (
    accuracy,
    actions,
    arguments,
    bench,
    convert,
    demo,
    evaluate,
    gallery,
    jobs_status,
    memory,
    models,
    push,
    synthesize,
    terminal,
    train,
)
from leaps_jax.errors import UserError, printable
from leaps_jax.runtime import executable_cache
from leaps_jax.runtime.engine import NotFiniteError

COMMANDS = (
    models,
    convert,
    push,
    synthesize,
    jobs_status,
    train,
    accuracy,
    evaluate,
    gallery,
    bench,
    demo,
    actions,
)


def main(words: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    with terminal.outlived():
        code = _run(words)
        try:
            sys.stdout.flush()
        except OSError as error:
            terminal.silence(sys.stdout)
            if not isinstance(error, BrokenPipeError):
                print(_failed(error), file=sys.stderr)
            code = code or 1
        return code


def entry() -> NoReturn:
    """The command as a process of its own.

    After an error it ends at once. Python would wait for threads, of which one may
    have XLA compile a step; several processes take leave of each other there.
    """
    code = main()
    if code and not jax.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(words: list[str] | None) -> int:
    options = argparse.Namespace(command=None)
    try:
        parser = arguments.parser(*(command.add for command in COMMANDS))
        options = parser.parse_args(words)
        options.words = sys.argv[1:] if words is None else words
        turn_off_triton_gemm()
        executable_cache.use_folder_of_user()
        return options.run(options)
    except UserError as error:
        print(f"leaps-jax: error: {error}", file=sys.stderr)
        return 2
    except NotFiniteError as error:
        print(f"leaps-jax: failed: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        line = memory.too_large(options, error)
        if line is not None:
            print(line, file=sys.stderr)
            return 2
        if not isinstance(error, jax.errors.JaxRuntimeError):
            raise
        print(_device_failed(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("leaps-jax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        terminal.silence(sys.stdout)
        return 1
    except OSError as error:
        print(_failed(error), file=sys.stderr)
        return 1


def _failed(error: OSError) -> str:
    """A fault of the machine, a full disk for example, in one line."""
    what = " ".join(str(error.strerror or error).split())[:200]
    where = f"{error.filename}: " if error.filename else ""
    remedy = "see to that, then start the same command again"
    return f"leaps-jax: failed: {where}{what}; {remedy}"


def _device_failed(error: Exception) -> str:
    """A fault of a device or of its driver, in one line."""
    what = printable(next(iter(str(error).splitlines()), "") or type(error).__name__)
    remedy = "start the same command again, with the device to itself"
    return f"leaps-jax: failed: device: {what}; {remedy}"


def turn_off_triton_gemm() -> None:
    """Sets an XLA flag; JAX reads these when it starts a device.

    XLA's Triton GEMM fusion aborts the process on some products of a folded
    (batch x time) reshape (JAX 0.11.2, H200). A value that the user set stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_enable_triton_gemm" not in flags:
        flags = f"{flags} --xla_gpu_enable_triton_gemm=false".strip()
        os.environ["XLA_FLAGS"] = flags
