"""Maps the update step over devices.

Every leaf of a state or batch has the video as its leading axis. `shard` splits that
axis over devices and `gather` joins it again; remainders are padded with copies, which
carry weight 0, and dropped.

The devices may belong to several processes. Then each process calls the same with the
videos that it holds, and only the collectives of the step and the metrics are of all.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.runtime.loop_invariants import hoist

AXIS = "devices"


@contextlib.contextmanager
def on_processor() -> Iterator[None]:
    """What JAX makes here lies with the processor, where JAX has one."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(RuntimeError):
            cpu = jax.local_devices(backend="cpu")[0]
            stack.enter_context(jax.default_device(cpu))
        yield


def all_devices() -> list[jax.Device]:
    """Of all processes, those of one process next to each other."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def own(n: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Which of n videos are on devices of this process: all, if it is the only one."""
    slots = _slots(n, devices).ravel()
    return slots[slots < n]


def held(n: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """As `own`; but a process without videos holds the last one, as padding."""
    numbers = own(n, devices)
    return numbers if len(numbers) else np.array([n - 1])


def _slots(n: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """(devices of this process, per device): numbers of videos, n and up is padding."""
    per_device = -(-n // len(devices))
    slots = np.arange(len(devices) * per_device).reshape(-1, per_device)
    return slots[[d.process_index == jax.process_index() for d in devices]]


def _local(devices: Sequence[jax.Device], *axes: str) -> jax.sharding.NamedSharding:
    """Over the devices of this process."""
    local = [d for d in devices if d.process_index == jax.process_index()]
    mesh = jax.sharding.Mesh(np.array(local), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def shard(tree: Any, devices: Sequence[jax.Device], n: int | None = None) -> Any:
    """Splits the leading axis: (n, ...) -> (devices, ceil(n / devices), ...).

    Args:
      tree: of the videos that this process holds (see `held`).
      devices: of all processes.
      n: videos of all processes, if there are several.

    Returns:
      The part of this process, on its devices.
    """

    def split(x):
        x = np.asarray(x)
        shape = _slots(n or len(x), devices).shape
        index = np.minimum(np.arange(np.prod(shape)), len(x) - 1)
        return x[index].reshape(*shape, *x.shape[1:])

    sharding = _local(devices, AXIS)
    return jax.device_put(jax.tree.map(split, tree), sharding)


def replicate_like(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Shapes of what `replicate` gives, to compile for without a copy."""

    def shaped(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_local(devices))

    return jax.tree.map(shaped, tree)


def shard_like(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Shapes of what `shard` gives of arrays of these shapes, in a process alone."""

    def shaped(x):
        shape = (*_slots(len(x), devices).shape, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=_local(devices, AXIS))

    return jax.tree.map(shaped, tree)


def padding_weights(n: int, devices: Sequence[jax.Device]) -> jax.Array:
    """(devices, ceil(n / devices)): 1 for a video, 0 for padding."""
    weights = (_slots(n, devices) < n).astype(np.float32)
    return jax.device_put(weights, _local(devices, AXIS))


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies constants to every device of this process once."""
    return jax.device_put(tree, _local(devices))


def gather(tree: Any, n: int) -> Any:
    """Joins the leading axes again, on the host, and drops all after n videos."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[:n], tree)


def gather_metrics(metrics: Any, n: int) -> Any:
    """Joins metrics (devices, steps, per device) to (steps, n)."""
    return jax.tree.map(
        lambda x: np.moveaxis(np.asarray(x), 0, 1).reshape(x.shape[1], -1)[:, :n],
        metrics,
    )


def map_steps(
    update_step: Callable,
    finish: Callable,
    steps: int,
    devices: Sequence[jax.Device],
) -> Callable:
    """Compiles `steps` update steps into one call on all devices.

    Args:
      update_step: `(state, batch, frozen) -> (state, metrics)` for one device, with
        its collectives over `AXIS`.
      finish: `(state, batch, frozen) -> state`, run once after them.
      steps: run under `lax.scan`, so that Python never waits.
      devices: the devices.

    Returns:
      `(sharded state, sharded batch, replicated frozen) -> (state, metrics)`; the
      state is donated, metrics are (devices, steps, per device) of all processes.
    """
    own = next(d for d in devices if d.process_index == jax.process_index())

    def many(state, batch, frozen):
        def step(state):
            return update_step(state, batch, frozen)

        if jax.default_backend() == "gpu":
            step = hoist(update_step, state, (batch, frozen), own)
        state, metrics = jax.lax.scan(lambda state, _: step(state), state, None, steps)
        return finish(state, batch, frozen), jax.lax.all_gather(metrics, AXIS)

    return jax.pmap(
        many,
        axis_name=AXIS,
        in_axes=(0, 0, None),
        out_axes=(0, None),
        devices=list(devices),
        donate_argnums=0,
    )


def of_own(compiled: Callable, devices: Sequence[jax.Device]) -> Callable:
    """A mapped function, compiled over several processes, of what each of them holds.

    What `jax.pmap` returns takes that, but no options of the compiler; what it compiles
    to takes and gives arrays of all processes.
    """
    own = [d for d in devices if d.process_index == jax.process_index()]
    constants: dict[int, tuple[jax.Array, jax.Array]] = {}

    def axes(x: jax.Array) -> jax.sharding.PartitionSpec:
        assert isinstance(x.sharding, jax.sharding.NamedSharding)
        return x.sharding.spec

    def over(devices: Sequence[jax.Device], x: jax.Array) -> jax.Array:
        """An array over these devices, of the same parts."""
        mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
        shape = (len(devices), *x.shape[1:]) if AXIS in axes(x) else x.shape
        parts = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(
            shape, jax.sharding.NamedSharding(mesh, axes(x)), parts
        )

    def over_all(x: jax.Array) -> jax.Array:
        if AXIS in axes(x):
            return over(devices, x)
        if id(x) not in constants:  # weights: once, since there are hundreds of them
            constants[id(x)] = x, over(devices, x)  # x, so that no other gets its id
        return constants[id(x)][1]

    def call(*arguments: Any) -> Any:
        outputs = compiled(*jax.tree.map(over_all, arguments))
        return jax.tree.map(functools.partial(over, own), outputs)

    return call


def map_videos(function: Callable, devices: Sequence[jax.Device]) -> Callable:
    """Compiles `(constants, *videos) -> tree` for the videos of each device.

    Returns:
      `(replicated constants, sharded videos) -> sharded tree`.
    """

    def one(constants, videos):
        return function(constants, *videos)

    return jax.pmap(one, axis_name=AXIS, in_axes=(None, 0), devices=list(devices))


def batch_mean(weight: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The mean over the videos of all devices, padding left out.

    Args:
      weight: (b,), 1 for a video and 0 for padding.

    Returns:
      `(b, ...) -> (...)`. Its gradient is that of the *sum over all videos of all
      devices* of a loss that uses the mean: written with a local mean and
      `stop_gradient`, it needs no collective backwards and does not depend on how
      the mapping transposes one (`pmap` counts a replicated loss once a device).
    """
    local = weight.sum()
    everywhere = jax.lax.psum(local, AXIS)

    def mean(x: jax.Array) -> jax.Array:
        shaped = weight.reshape(-1, *[1] * (x.ndim - 1))
        part = (x * shaped).sum(0)
        own = part / jnp.maximum(local, 1.0)
        value = _exchanged(jax.lax.stop_gradient(part)) / everywhere
        return own + jax.lax.stop_gradient(value - own)

    return mean


def _exchanged(x: jax.Array) -> jax.Array:
    """The sum over devices, by an exchange between GPUs even where there is one.

    Where a program exchanges something, XLA orders its kernels so as to have others to
    run meanwhile, which deals the model and its verifier out in turns, and more of them
    run at once. Else the verifier comes after the model, in the memory that this left,
    and waits for it: 10.8 against 9.3 ms for a step of X3D-XS on an H200, 9.3 against
    8.5 for Slow R50; transformers gain nothing.
    """
    total = jax.lax.psum(x, AXIS)
    if jax.lax.axis_size(AXIS) > 1 or jax.default_backend() != "gpu":
        return total
    return jax.lax.ppermute(total, AXIS, [(0, 0)])  # with itself: a copy
