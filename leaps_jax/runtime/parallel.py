"""Data parallelism: videos are sharded over devices, weights are replicated.

The leading axis of every leaf of a state or batch is the video. `shard` splits it over
the devices and `gather` joins it again. Where the videos do not divide by the devices,
`shard` pads with copies of the last video, which get weight 0 and are dropped.

The devices may belong to several processes. Each process then makes the same calls
with its own videos; collectives and metrics cover all of them.
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
    """Makes the CPU the default device, where JAX has a CPU backend."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(RuntimeError):
            cpu = jax.local_devices(backend="cpu")[0]
            stack.enter_context(jax.default_device(cpu))
        yield


def all_devices() -> list[jax.Device]:
    """The devices of all processes, grouped by process."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def own(n: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """The numbers of those of n videos that are on devices of this process."""
    slots = _slots(n, devices).ravel()
    return slots[slots < n]


def held(n: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Like `own`, but a process without videos gets the last video as padding."""
    numbers = own(n, devices)
    return numbers if len(numbers) else np.array([n - 1])


def _slots(n: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Numbers of videos, (devices of this process, per device); from n on, padding."""
    per_device = -(-n // len(devices))
    slots = np.arange(len(devices) * per_device).reshape(-1, per_device)
    return slots[[d.process_index == jax.process_index() for d in devices]]


def _local(devices: Sequence[jax.Device], *axes: str) -> jax.sharding.NamedSharding:
    """A sharding over the devices of this process."""
    local = [d for d in devices if d.process_index == jax.process_index()]
    mesh = jax.sharding.Mesh(np.array(local), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def shard(tree: Any, devices: Sequence[jax.Device], n: int | None = None) -> Any:
    """Splits the leading axis: (n, ...) -> (devices, ceil(n / devices), ...).

    Args:
      tree: arrays of the videos of this process (see `held`).
      devices: those of all processes.
      n: number of videos of all processes, if there are several.

    Returns:
      The shards of this process, on its devices.
    """

    def split(x):
        x = np.asarray(x)
        shape = _slots(n or len(x), devices).shape
        index = np.minimum(np.arange(np.prod(shape)), len(x) - 1)
        return x[index].reshape(*shape, *x.shape[1:])

    sharding = _local(devices, AXIS)
    return jax.device_put(jax.tree.map(split, tree), sharding)


def replicate_like(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """The shapes and shardings of `replicate(tree, devices)`; nothing is copied."""

    def shaped(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_local(devices))

    return jax.tree.map(shaped, tree)


def shard_like(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """The shapes and shardings of `shard(tree, devices)`, for a single process."""

    def shaped(x):
        shape = (*_slots(len(x), devices).shape, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=_local(devices, AXIS))

    return jax.tree.map(shaped, tree)


def padding_weights(n: int, devices: Sequence[jax.Device]) -> jax.Array:
    """(devices, ceil(n / devices)): 1 for a video, 0 for padding."""
    weights = (_slots(n, devices) < n).astype(np.float32)
    return jax.device_put(weights, _local(devices, AXIS))


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies a tree to every device of this process."""
    return jax.device_put(tree, _local(devices))


def gather(tree: Any, n: int) -> Any:
    """Joins the two leading axes on the host, and drops the padding after n videos."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[:n], tree)


def gather_metrics(metrics: Any, n: int) -> Any:
    """Joins metrics (devices, steps, per device) to (steps, n) on the host."""
    return jax.tree.map(
        lambda x: np.moveaxis(np.asarray(x), 0, 1).reshape(x.shape[1], -1)[:, :n],
        metrics,
    )


def map_over_devices(
    function: Callable,
    devices: Sequence[jax.Device],
    in_axes: Any,
    out_axes: Any,
    donate: Sequence[int] = (),
) -> Callable:
    """Compiles a function to run on every device at once.

    This is the only call of `jax.pmap`, which is `jit(shard_map(...))` since JAX 0.8:
    whoever replaces it changes this function alone.

    Args:
      function: of the shards of one device; its collectives are over `AXIS`.
      devices: those of all processes.
      in_axes: per argument, 0 for a sharded and None for a replicated one.
      out_axes: likewise for the outputs.
      donate: numbers of the arguments whose memory the outputs may reuse.
    """
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=in_axes,
        out_axes=out_axes,
        devices=list(devices),
        donate_argnums=tuple(donate),
    )


def map_steps(
    update_step: Callable, steps: int, devices: Sequence[jax.Device]
) -> Callable:
    """Compiles `steps` update steps, and a look at the best, into one call.

    Args:
      update_step: `(state, batch, frozen, looks) -> (state, metrics)` for one device,
        with its collectives over `AXIS`.
      steps: iterations of the `lax.scan` before the last one, which looks.
      devices: those of all processes.

    Returns:
      `(sharded state, sharded batch, replicated frozen) -> (state, metrics)`. The
      state is donated. Metrics are (devices, steps, per device), of all processes.
    """
    local = next(d for d in devices if d.process_index == jax.process_index())

    def body(varying, batch, frozen):
        state, looks = varying
        return update_step(state, batch, frozen, looks)

    def many(state, batch, frozen):
        looks = jnp.arange(steps + 1) == steps
        step = functools.partial(body, batch=batch, frozen=frozen)
        if jax.default_backend() == "gpu":
            step = hoist(body, (state, looks[0]), (batch, frozen), local)
        state, metrics = jax.lax.scan(lambda *varying: step(varying), state, looks)
        metrics = jax.tree.map(lambda x: x[:-1], metrics)
        return state, jax.lax.all_gather(metrics, AXIS)

    return map_over_devices(
        many, devices, in_axes=(0, 0, None), out_axes=(0, None), donate=[0]
    )


def on_local_arrays(compiled: Callable, devices: Sequence[jax.Device]) -> Callable:
    """Wraps an executable of several processes to take and return this one's arrays.

    An uncompiled function of `map_over_devices` does that by itself, but takes no
    compiler options; its executable takes and gives global arrays.

    Args:
      compiled: what `compile_for` returned for a function of `map_over_devices`.
      devices: those of all processes.
    """
    local = [d for d in devices if d.process_index == jax.process_index()]
    constants: dict[int, tuple[jax.Array, jax.Array]] = {}

    def axes(x: jax.Array) -> jax.sharding.PartitionSpec:
        assert isinstance(x.sharding, jax.sharding.NamedSharding)
        return x.sharding.spec

    def over(devices: Sequence[jax.Device], x: jax.Array) -> jax.Array:
        """The array over these devices with the shards of `x`."""
        mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
        shape = (len(devices), *x.shape[1:]) if AXIS in axes(x) else x.shape
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(
            shape, jax.sharding.NamedSharding(mesh, axes(x)), shards
        )

    def globally(x: jax.Array) -> jax.Array:
        if AXIS in axes(x):
            return over(devices, x)
        if id(x) not in constants:  # weights: once, since there are hundreds of them
            constants[id(x)] = x, over(devices, x)  # x, so that no other gets its id
        return constants[id(x)][1]

    def call(*arguments: Any) -> Any:
        outputs = compiled(*jax.tree.map(globally, arguments))
        return jax.tree.map(functools.partial(over, local), outputs)

    return call


def map_videos(function: Callable, devices: Sequence[jax.Device]) -> Callable:
    """Compiles `(constants, *videos) -> tree` for the videos of each device.

    Returns:
      `(replicated constants, sharded videos) -> sharded tree`.
    """

    def one(constants, videos):
        return function(constants, *videos)

    return map_over_devices(one, devices, in_axes=(None, 0), out_axes=0)


def batch_mean(weight: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The mean over the videos of all devices, without the padding.

    Args:
      weight: (b,), 1 for a video and 0 for padding.

    Returns:
      `(b, ...) -> (...)`. Its gradient is that of a loss that is summed over the videos
      of all devices. A local mean and `stop_gradient` make it so: the backward pass
      then has no collective, whose transpose depends on the mapping (`pmap` counts a
      replicated loss once per device).
    """
    local = weight.sum()
    everywhere = jax.lax.psum(local, AXIS)

    def mean(x: jax.Array) -> jax.Array:
        shaped = weight.reshape(-1, *[1] * (x.ndim - 1))
        part = (x * shaped).sum(0)
        local_mean = part / jnp.maximum(local, 1.0)
        value = _psum(jax.lax.stop_gradient(part)) / everywhere
        return local_mean + jax.lax.stop_gradient(value - local_mean)

    return mean


def _psum(x: jax.Array) -> jax.Array:
    """The sum over devices, with a collective even on a single GPU.

    XLA schedules kernels around a collective so that they overlap with it. It then
    interleaves the model with its verifier, and more of their kernels run at the same
    time. Without one the verifier is scheduled after the model, reuses its memory, and
    has to wait for it. Convolutional networks are faster for this, transformers not.
    """
    total = jax.lax.psum(x, AXIS)
    if jax.lax.axis_size(AXIS) > 1 or jax.default_backend() != "gpu":
        return total
    return jax.lax.ppermute(total, AXIS, [(0, 0)])  # to itself: a copy
