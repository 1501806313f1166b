"""One run over several processes, by `jax.distributed`.

Every process does the same with the same arguments, on the videos of its own devices.
What only one can do, the first does for all. A process alone is the first of one, and
nothing here then costs anything.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from leaps_jax.errors import UserError

#: Seconds without a sign of life after which a process counts as dead, and the others
#: end too.
HEARTBEAT = 60


def join(address: str | None, count: int | None, index: int | None) -> None:
    """Meets the other processes; before anything that uses JAX.

    Args:
      address: HOST:PORT of the first process, where it listens; "auto" where the
        cluster tells (TPU pods, Slurm, Open MPI); None for a run of one process.
      count: of processes; None with "auto".
      index: of this one, from 0; None with "auto".

    Raises:
      UserError: the arguments do not fit together, or the others were not met.
    """
    given = {"processes": count, "process": index}
    if address is None or address == "auto":
        for name, value in given.items():
            if value is not None:
                need = "needs --coordinator HOST:PORT" if address is None else ""
                need = need or "is found out with --coordinator auto; leave it out"
                raise UserError(f"{name}={value}: {need}")
        if address is None:
            return
    else:
        for name, value in given.items():
            if value is None:
                raise UserError(f"{name}: missing; --coordinator {address} needs it")
        assert count is not None and index is not None
        if count < 1:
            raise UserError(f"processes={count}: must be at least 1")
        if not 0 <= index < count:
            raise UserError(f"process={index}: must be from 0 to {count - 1}")
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal()):
            raise UserError(f"coordinator={address!r}: must be HOST:PORT or auto")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    arguments: dict[str, Any] = {}
    if address != "auto":
        arguments = {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, **arguments)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"coordinator={address!r}: the processes did not meet ({reason}); start all"
            " of them, with one address that all of them reach"
        ) from error


def first() -> bool:
    """Whether this is the process that writes the run and talks."""
    return jax.process_index() == 0


def exchange(value: Any) -> list[Any]:
    """Gathers a JSON-able value of every process, in their order; all must call it."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.int32(len(text))).max())
    # of few lengths, since each is compiled for
    padded = np.full(max(1024, 1 << (longest - 1).bit_length()), ord(" "), np.uint8)
    padded[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row.tobytes()) for row in rows]


def any_of(*flags: bool) -> list[bool]:
    """Each flag, set where any process set it."""
    return [any(column) for column in zip(*exchange(flags), strict=True)]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that succeeds on all processes or raises on all, so that none waits."""
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except UserError as error:
        exchange({"mistake": str(error)})
        raise
    except BaseException as error:
        exchange({"error": f"{type(error).__name__}: {error}"})
        raise
    for number, answer in enumerate(exchange({})):
        if "mistake" in answer:
            raise UserError(f"process {number}: {answer['mistake']}")
        if "error" in answer:
            raise RuntimeError(f"process {number} failed: {answer['error']}")


@contextlib.contextmanager
def leaving(
    *known: type[BaseException],
    told: Callable[[BaseException], str | None] = lambda error: None,
) -> Iterator[None]:
    """Ends this process at once after an error that the others do not meet as well.

    By itself Python would wait at its end for the others, and they for this one. So
    they see it gone: at their next collective with gloo, else by `HEARTBEAT`.

    Args:
      known: errors that all processes raise, besides UserError.
      told: a line that says enough of an error, in place of its trace, or None; the
        exit code is then 2 instead of 1.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, (UserError, *known)) or jax.process_count() == 1:
            raise
        line = told(error)
        if line is None:
            traceback.print_exc()
        else:
            print(line, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if line is None else 2)


def on_first(function: Callable[[], Any]) -> Any:
    """Calls a function on the first process and gives all what it returned there."""
    value = None
    with together():
        if first():
            value = function()
    return exchange(value)[0]
