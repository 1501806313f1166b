"""From rows to batches that are ready for the devices, in the background."""

import collections
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from leaps_jax.errors import UserError
from leaps_jax.progress import Stop
from leaps_jax.runs.jobs.folder import Folder
from leaps_jax.runs.jobs.groups import OPEN, Group, Groups, Item, Ready
from leaps_jax.runs.jobs.journal import Journal, Notes
from leaps_jax.runs.jobs.table import Row
from leaps_jax.runtime import parallel

Items = tuple[Group, list[Item]]  # of one group
#: Begins to decode a clip, and returns what waits for it.
Begin = Callable[[Callable[[], np.ndarray]], Callable[[], np.ndarray]]


def undone(
    rows: Iterable[Row], folder: Folder, journal: Journal
) -> Iterator[tuple[Row, list[int]]]:
    """Rows with the copies that they lack."""
    for row in rows:
        if folder.is_done(row.number):
            journal.skip()
        elif missing := folder.missing(row):
            yield row, missing
        else:  # killed after its last part
            folder.join(row)
            journal.skip()


@contextlib.contextmanager
def in_threads() -> Iterator[Begin]:
    """Decodes in threads of this process, a few clips at a time."""
    pool = ThreadPoolExecutor(_at_a_time(), "decode")
    try:
        yield lambda decode: pool.submit(decode).result
    finally:
        pool.shutdown(cancel_futures=True)


def _at_a_time() -> int:
    return min(8, os.cpu_count() or 1)


def decoded(
    rows: Iterable[tuple[Row, list[int]]],
    groups: Groups,
    notes: Notes,
    decoder: Callable[[], AbstractContextManager[Begin]] = in_threads,
) -> Iterator[Items]:
    """Rows in order with their stimuli, a few of which are decoded ahead.

    Args:
      rows: with their copies.
      groups: of the run.
      notes: of rows that fail.
      decoder: opens what begins to decode.
    """
    waiting: collections.deque[Any] = collections.deque()

    def oldest() -> Iterator[Items]:
        row, copies, group, label, wait = waiting.popleft()
        found = []
        with notes.failing(row, f"stimulus={row.stimulus!r}"):
            clip = wait() if wait else None
            found = [Item(row, copy, label, clip) for copy in copies]
        if found:
            yield group, found

    with decoder() as begin:
        for row, copies in rows:
            with notes.failing(row, f"model={row.model!r}"):
                group = groups.of(row.model, row.verifier)
                label = group.model.spec.label_index(row.label)
                if group.primed and not row.stimulus:
                    method = group.settings.method
                    raise UserError(
                        f"stimulus='': missing; --method {method} starts from or is"
                        " primed by one"
                    )
                wait = begin(group.decoding(row)) if group.primed else None
                waiting.append((row, copies, group, label, wait))
            if len(waiting) > 2 * _at_a_time():
                yield from oldest()
        while waiting:
            yield from oldest()


def filled(items: Iterable[Items], size: int) -> Iterator[Items]:
    """Batches, each of one group; only the last of a group can be smaller."""
    waiting: collections.OrderedDict[Group, list[Item]] = collections.OrderedDict()
    for group, more in items:
        if group not in waiting and len(waiting) == OPEN:
            other, left = waiting.popitem(last=False)
            if left:
                yield other, left
        have = waiting.pop(group, []) + more
        full = len(have) // size * size
        for start in range(0, full, size):
            yield group, have[start : start + size]
        waiting[group] = have[full:]
    for group, left in waiting.items():
        if left:
            yield group, left


def ready(batches: Iterable[Items], size: int, notes: Notes) -> Iterator[Ready]:
    """Batches whose functions are compiled."""
    for group, items in batches:
        try:
            one = group.ready(items, size)
        except Exception as error:  # hours of work must not end with one model
            group.give_up(error, items, notes)
        else:
            yield one


@contextlib.contextmanager
def ahead(batches: Iterator[Ready], stop: Stop) -> Iterator[Iterator[Ready]]:
    """Takes batches from an iterator in a thread, one ahead, until `stop`.

    What the thread makes, such as weights of models, stays with the processor. When
    cuDNN runs an attention for the first time it captures the stream of the GPU; what
    another thread puts there meanwhile breaks both.
    """
    taken: queue.Queue[Any] = queue.Queue(1)
    over = threading.Event()

    def put(value: Any) -> None:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                return taken.put(value, timeout=0.1)

    def work() -> None:
        try:
            with parallel.on_processor():
                for one in batches:
                    put(one)
                    if over.is_set():
                        break
            put(None)
        except BaseException as error:
            put(error)

    def given() -> Iterator[Ready]:
        while not stop:
            try:
                one = taken.get(timeout=0.5)
            except queue.Empty:
                continue
            if one is None:
                break
            if isinstance(one, BaseException):
                raise one
            yield one

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        yield given()
    finally:
        over.set()
        thread.join()
