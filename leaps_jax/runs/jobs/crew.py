"""The workers of a run on Ray: as many as the cluster has devices for."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

from leaps_jax.errors import UserError, last_line
from leaps_jax.runs.jobs.batches import Begin
from leaps_jax.runs.jobs.journal import in_a_line
from leaps_jax.runs.jobs.worker import LOOKAHEAD, Batch, Worker

LOOK = 1.0  # seconds from one look for machines and workers to the next


def import_ray() -> Any:
    """The package, or UserError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise UserError(
            "engine='ray': is not installed; pip install 'leaps_jax[ray]', or use"
            " --engine local"
        ) from None
    return ray


@contextlib.contextmanager
def connected(ray: Any) -> Iterator[None]:
    """Connects to a cluster, unless that was done before.

    Raises:
      UserError: none answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS')!r}"
        raise UserError(
            f"{where}: no cluster answers there ({in_a_line(error)}); set"
            " RAY_AUTH_MODE=token for one that asks for a token, start one with `ray"
            " start --head`, or unset it for one on this machine"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def nodes(ray: Any) -> dict[str, dict[str, float]]:
    """The resources of machines that are alive."""
    return {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}


def device_kind(ray: Any) -> str:
    """What a worker needs, "GPU" or "TPU"; "CPU" where the cluster has neither."""
    has = {name for resources in nodes(ray).values() for name in resources}
    return next((kind for kind in ("GPU", "TPU") if kind in has), "CPU")


class Actor(Worker):
    """A worker on Ray.

    Args:
      variables: of its environment.
      tasks: whether clips are decoded by tasks, on any machine of the cluster.
      made: see `Worker`.
    """

    def __init__(self, variables: Mapping[str, str], tasks: bool, *made: Any):
        os.environ.update(variables)  # before JAX starts its devices
        self._tasks = tasks
        super().__init__(*made)

    def decoder(self) -> AbstractContextManager[Begin]:
        return in_tasks(import_ray()) if self._tasks else super().decoder()

    def node(self) -> str:
        """The machine that it is on; answers once it can work."""
        return import_ray().get_runtime_context().get_node_id()


@contextlib.contextmanager
def in_tasks(ray: Any) -> Iterator[Begin]:
    """Decodes by tasks of Ray, wherever a processor is free.

    Ray begins a task again that dies, or whose machine does.
    """
    task = ray.remote(_value_or_error).options(num_cpus=1)

    def begin(decode: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        reference = task.remote(decode)

        def wait() -> np.ndarray:
            found = ray.get(reference)
            if isinstance(found, Exception):
                raise found
            return found

        return wait

    yield begin


def _value_or_error(decode: Callable[[], np.ndarray]) -> np.ndarray | Exception:
    """The clip, or the error: Ray adds a trace to the text of one that is raised."""
    jax.config.update("jax_platforms", "cpu")  # devices are the workers'
    try:
        return decode()
    except Exception as error:
        return error


@dataclasses.dataclass(eq=False)
class Member:
    """A worker as the driver knows it.

    Attributes:
      name: a number, which stays when Ray starts it again.
      actor: its handle.
      node: where it is; empty while it starts.
      group: what it was given last.
      next: what it was told to prepare.
      held: what its process was given.
      batches: that it has, {reference of the answer: (batch, since when)}, in order.
      first: when its first batch was over.
      busy: seconds in which its devices had a batch since then.
    """

    name: int
    actor: Any
    node: str = ""
    group: tuple[str, str] | None = None
    next: tuple[str, str] | None = None
    held: set[tuple[str, str]] = dataclasses.field(default_factory=set)
    batches: dict[Any, tuple[Batch, float]] = dataclasses.field(default_factory=dict)
    first: float = 0.0
    busy: float = 0.0
    done: int = 0
    rows: int = 0


class Crew:
    """The workers: as many as there are devices for."""

    def __init__(
        self, ray: Any, made: tuple[Any, ...], kind: str, devices: int, most: int | None
    ):
        self._ray, self._made, self._kind = ray, made, kind
        self._devices, self._most, self._looked = devices, most, 0.0
        self.members: list[Member] = []
        self.starting: dict[Any, Member] = {}  # by the reference of its greeting
        self._absent: list[Member] = []
        self._refused = 0

    def grow(self) -> None:
        """Makes workers for devices that have none, also those of new machines.

        Raises:
          UserError: no machine has so many devices.
        """
        now = time.monotonic()
        if self._looked and now - self._looked < LOOK:
            return
        self._looked = now
        while self._absent:
            self.greet(self._absent.pop())
        has = [r.get(self._kind, 0) for r in nodes(self._ray).values()]
        room = int(sum(n // self._devices for n in has))
        if not (room or self._most or self.members):
            raise UserError(
                f"devices-per-worker={self._devices}: no machine has more than"
                f" {max(has, default=0):.0f} {self._kind}s; lower it"
            )
        while len(self.members) + self._refused < (self._most or room):
            member = Member(len(self.members) + self._refused, self._actor())
            self.members.append(member)
            self.greet(member)

    def _actor(self) -> Any:
        flags = [os.environ.get("XLA_FLAGS", "")]
        variables = {}
        options: dict[str, Any] = {"num_cpus": 0}
        if self._kind == "CPU":
            options["num_cpus"] = self._devices
            flags.append(f"--xla_force_host_platform_device_count={self._devices}")
            variables["NPROC"] = str(self._devices)  # threads of XLA
        elif self._kind == "GPU":
            options["num_gpus"] = self._devices
        else:
            options["resources"] = {"TPU": self._devices}
        variables["XLA_FLAGS"] = " ".join(flags).strip()
        actor = self._ray.remote(Actor).options(
            # batches, and meanwhile to be greeted and told what to drop and prepare
            max_concurrency=LOOKAHEAD + 3,
            max_restarts=-1,
            **options,
        )
        return actor.remote(variables, self._tasks(), *self._made)

    def _tasks(self) -> bool:
        """Whether the cluster has processors that no worker takes."""
        found = nodes(self._ray).values()
        return self._kind != "CPU" and any(r.get("CPU", 0) >= 1 for r in found)

    def greet(self, member: Member) -> None:
        """Asks a worker to answer once it can work."""
        self.starting[member.actor.node.remote()] = member

    def welcome(self, reference: Any) -> None:
        """Takes the answer of a worker that was greeted.

        Raises:
          UserError: it cannot work, and was the last.
        """
        member = self.starting.pop(reference)
        try:
            member.node = self._ray.get(reference)
        except self._ray.exceptions.ActorUnavailableError:
            self._absent.append(member)
        except self._ray.exceptions.RayError as error:
            self.members.remove(member)
            self._refused += 1
            if not self.members:
                raise UserError(reason_of(error)) from None

    def lose(self, member: Member, end: bool) -> None:
        """Waits for another process of a worker, which Ray starts here or elsewhere.

        Args:
          member: whose process died or is of no use.
          end: it goes on, and is ended.
        """
        member.node, member.group, member.next = "", None, None
        member.held.clear()
        if end:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(member.actor, no_restart=False)
        self._absent.append(member)

    def close(self) -> None:
        """Ends all workers."""
        for member in self.members:
            with contextlib.suppress(Exception):  # of a cluster that is gone
                self._ray.kill(member.actor)


def reason_of(error: Exception) -> str:
    """The last line of an error of Ray, which is that of what it was called for."""
    return last_line(str(error)).removeprefix("leaps_jax.errors.UserError: ")
