"""A simulated Ray: workers that take time as a test says, and none of this one's."""

import dataclasses
import importlib
from types import SimpleNamespace
from typing import Any

from leaps_jax.runs.jobs.worker import Done


@dataclasses.dataclass(eq=False)
class Answer:
    """The reference of an answer, and when it comes."""

    at: float
    value: Any


class Actor:
    """A worker with a device: it prepares one batch while another is on the device.

    Attributes:
      compiled: groups, in their order.
      runs: when the device had a batch, (from, to).
    """

    def __init__(self, ray: "Simulated", number: int):
        self._ray, self._number = ray, number
        self.ready = self.free = ray.now + ray.starting
        self.compiled: list[Any] = []
        self._prepared: dict[Any, float] = {}
        self.runs: list[tuple[float, float]] = []
        for name in ("node", "drop", "do", "prepare"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    def _node(self) -> Answer:
        return Answer(self.ready, "one")

    def _drop(self, number: int) -> None:
        """It does it nevertheless."""

    def _prepare(self, *group: str) -> None:
        """In a thread of its own, beside those of batches."""
        self.compiled.append(group)
        self._prepared[group] = max(self.ready, self._ray.now) + self._ray.compiling

    def _do(self, batch) -> Answer:
        ray = self._ray
        self.ready = max(self.ready, ray.now) + ray.decoding
        if batch.group not in self.compiled:
            self.compiled.append(batch.group)
            self.ready += ray.compiling
        self.ready = max(self.ready, self._prepared.get(batch.group, 0.0))
        start = max(self.ready, self.free)
        seconds = ray.seconds(batch, self._number)
        self.free = start + seconds
        self.runs.append((start, self.free))
        ray.videos += len(batch.rows)
        done = Done(tuple(row.number for row, _ in batch.rows), busy=seconds)
        return Answer(self.free + ray.writing, done)


class Simulated:
    """What the driver calls of Ray, and of `time`."""

    def __init__(self, workers, seconds, compiling=60.0, starting=20.0):
        self.exceptions = importlib.import_module("ray").exceptions
        self.seconds, self.compiling, self.starting = seconds, compiling, starting
        self.decoding, self.writing = 2.0, 0.5
        self.now, self.videos, self._workers = 0.0, 0, workers
        self.actors: list[Actor] = []

    def nodes(self):
        resources = {"CPU": self._workers}
        return [{"NodeID": "one", "Alive": True, "Resources": resources}]

    def remote(self, _):
        def make(*_):
            self.actors.append(Actor(self, len(self.actors)))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def wait(self, asked, num_returns=1, timeout=0.0):
        first = min(answer.at for answer in asked)
        self.now = max(self.now, min(first, self.now + timeout))
        return [answer for answer in asked if answer.at <= self.now], []

    def get(self, answer):
        return answer.value

    def kill(self, actor, no_restart=True):
        pass

    # time

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
