"""Labelled clips to train and to evaluate on: in memory, or drawn when needed.

`Clips` are uint8 arrays on the host: windows of frames are cut there, crops and colours
are drawn on the devices. `Renderings` are drawn on the devices altogether.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax import video as video_lib
from leaps_jax.data.augmentation import Augmentation, random_view
from leaps_jax.model import ModelSpec

Batch = tuple[np.ndarray, ...]
Views = Callable[..., tuple[jax.Array, jax.Array, jax.Array | None]]


class Dataset(Protocol):
    """Labelled clips to train and to evaluate on."""

    @property
    def labels(self) -> np.ndarray:
        """(n,) indices into `classes`."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def joints(self) -> int:
        """How many are known of a figure; 0 where nothing is."""

    def batches(self, spec: ModelSpec, size: int, seed: int) -> Iterator[Batch]:
        """Endless batches of `size` clips, on the host: what `views` takes."""

    def views(self, spec: ModelSpec, augmentation: Augmentation) -> Views:
        """`(key, *batch) -> (pixels, labels, joints)`, on a device.

        Pixels are (b, t, h, w, 3), labels (b,), joints (b, t, joints, 2) x and y in
        frame sizes, or None where they are not known.
        """

    def windows(self, spec: ModelSpec, count: int) -> Iterator[np.ndarray]:
        """Clip by clip in order, what to evaluate on: pixels (count, t, h, w, 3)."""


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips in memory: each (t, h, w, 3) uint8, labels (n,), and the class names."""

    videos: Sequence[np.ndarray]
    labels: np.ndarray
    classes: tuple[str, ...]
    joints: int = 0

    def batches(self, spec: ModelSpec, size: int, seed: int) -> Iterator[Batch]:
        """Endless windows: (b, t, H, W, 3) uint8, extents (b, 2), labels (b,).

        Every clip is seen once before any is seen again. A clip shorter than the
        window is looped.
        """
        rng = np.random.default_rng(seed)
        height = max(v.shape[1] for v in self.videos)
        width = max(v.shape[2] for v in self.videos)
        order: collections.deque[int] = collections.deque()
        while True:
            videos = np.zeros((size, spec.frames, height, width, 3), np.uint8)
            extents = np.zeros((size, 2), np.float32)
            labels = np.zeros(size, np.int32)
            for row in range(size):
                if not order:
                    order.extend(rng.permutation(len(self.videos)))
                number = order.popleft()
                video = self.videos[number]
                start = rng.integers(max(1, len(video) - spec.window + 1))
                h, w = video.shape[1:3]
                videos[row, :, :h, :w] = _window(video, int(start), spec)
                extents[row] = h, w
                labels[row] = self.labels[number]
            yield videos, extents, labels

    def views(self, spec: ModelSpec, augmentation: Augmentation) -> Views:
        """Random crops and colours; see `random_view`."""
        view = functools.partial(random_view, size=spec.size, augmentation=augmentation)

        def views(key, videos, extents, labels):
            keys = jax.random.split(key, len(videos))
            return jax.vmap(view)(keys, videos, extents), labels, None

        return views

    def windows(self, spec: ModelSpec, count: int) -> Iterator[np.ndarray]:
        """Evenly spaced windows, one is the middle, centre-cropped like a stimulus."""
        for video in self.videos:
            last = max(0, len(video) - spec.window)
            starts = np.linspace(0, last, count) if count > 1 else np.array([last / 2])
            cut = [_window(video, int(round(start)), spec) for start in starts]
            yield np.stack([_centre(window, spec.size) for window in cut]) / 255.0


@dataclasses.dataclass(frozen=True)
class Renderings:
    """Clips that are drawn on the devices: endless to train on, `count` to evaluate.

    Attributes:
      draw: `(key, label) -> (pixels (t, size, size, 3), joints (t, joints, 2))` of
        the length and size that the model takes.
      classes: names that labels index.
      joints: how many `draw` tells of.
      count: clips of an evaluation, which takes the classes in turn.
      seed: of the clips of an evaluation; a training has another.
    """

    draw: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    classes: tuple[str, ...]
    joints: int = 0
    count: int = 2000
    seed: int = 2**32 - 1

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.count, dtype=np.int32) % len(self.classes)

    def batches(self, spec: ModelSpec, size: int, seed: int) -> Iterator[Batch]:
        """Endless labels (b,)."""
        rng = np.random.default_rng(seed)
        while True:
            yield (rng.integers(len(self.classes), size=size, dtype=np.int32),)

    def views(self, spec: ModelSpec, augmentation: Augmentation) -> Views:
        """A new clip for every label; the augmentation is not used."""

        def views(key, labels):
            keys = jax.random.split(key, len(labels))
            pixels, joints = jax.vmap(self.draw)(keys, labels)
            return pixels, labels, joints

        return views

    def windows(self, spec: ModelSpec, count: int) -> Iterator[np.ndarray]:
        """A rendering is one window long, whatever the count."""
        draw = jax.jit(jax.vmap(self.draw))
        seed, batch = jax.random.key(self.seed), min(32, self.count)
        fold = jax.vmap(functools.partial(jax.random.fold_in, seed))
        for start in range(0, self.count, batch):
            # the last batch is filled up, so that nothing is compiled for it
            numbers = np.arange(start, start + batch)
            pixels, _ = draw(fold(numbers), numbers % len(self.classes))
            yield from np.asarray(pixels)[: self.count - start, None]


def _window(video: np.ndarray, start: int, spec: ModelSpec) -> np.ndarray:
    return video[(start + spec.stride * np.arange(spec.frames)) % len(video)]


@functools.partial(jax.jit, static_argnums=1)
def _resized(video: jax.Array, size: int) -> jax.Array:
    return video_lib.resize_and_crop(video.astype(jnp.float32), size)


def _centre(video: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(_resized(video, size))
