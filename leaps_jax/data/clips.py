"""The clips that a user names, as a model takes them.

A source of clips is one of

* a clip: `.mp4 .avi .mkv .webm .mov .m4v .gif`, `.npy`, `.npz`, or a folder of frames;
* a folder of clips, or of class folders of clips (`<class>/<clip>`);
* `tfds:NAME/SPLIT`, such as `tfds:ucf101/test` or `tfds:ucf101/ucf101_2/train[:10]`;
* `actions:CLASS` or `actions:CLASS/SEED`, a rendering of a synthetic action.

>>> stimuli = load_stimuli(["clip.mp4"], model.spec)  # doctest: +SKIP
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from leaps_jax.actions import motions, scenes
from leaps_jax.data import arrays, ffmpeg, finding, limits, resizing, tfds
from leaps_jax.data.finding import Clip, PathLike, find_clips
from leaps_jax.data.frames import Frames, in_memory
from leaps_jax.errors import UserError, bad_argument, nearest
from leaps_jax.model import FPS, ModelSpec
from leaps_jax.runtime import executable_cache, parallel
from leaps_jax.video import sample_frames

_ACTIONS = "actions:"


def load_stimuli(
    paths: PathLike | Sequence[PathLike],
    spec: ModelSpec,
    *,
    short: str = "refuse",
    data_dir: PathLike | None = None,
    argument: str = "stimulus",
) -> np.ndarray:
    """Loads clips the way a model takes them.

    Frames are sampled around the middle of the clip at the spec's stride; the short
    side is resized to the spec's size and the centre cropped, so nothing is stretched.

    Args:
      paths: clips, folders of clips or `tfds:NAME/SPLIT`.
      spec: of the model.
      short: for a clip with too few frames, "refuse" it or "loop" it.
      data_dir: where TFDS keeps its data sets; by default `TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.
      argument: the name that errors give to `paths`.

    Returns:
      (N, T, H, W, 3) float32 in [0, 1].

    Raises:
      UserError: a clip is missing, broken or too short.

    >>> load_stimuli("clip.mp4", model.spec).shape  # doctest: +SKIP
    (1, 8, 182, 182, 3)
    """
    videos, _ = load_labelled(
        paths, spec, short=short, data_dir=data_dir, argument=argument
    )
    return videos


def load_stimulus(
    path: PathLike,
    spec: ModelSpec,
    *,
    short: str = "refuse",
    data_dir: PathLike | None = None,
    argument: str = "stimulus",
) -> np.ndarray:
    """Loads a single clip, (t, h, w, 3), in the thread of the caller.

    Arguments and errors are those of `load_stimuli`; several clips are one more error.
    """
    total, sources = _sources(path, argument, data_dir, spec)
    if total != 1:
        raise bad_argument(argument, path, f"holds {total} clips; name one of them")
    video, _ = _load_one(next(sources), spec, short, argument)
    return video


def load_labelled(
    paths: PathLike | Sequence[PathLike],
    spec: ModelSpec,
    *,
    short: str = "refuse",
    progress: Callable[[int, int], None] | None = None,
    data_dir: PathLike | None = None,
    argument: str = "stimulus",
) -> tuple[np.ndarray, list[str | None]]:
    """Loads clips with the names of their classes; see `load_stimuli`.

    Args:
      paths: clips, `<class>/<clip>` folders or `tfds:NAME/SPLIT`.
      spec: of the model.
      short: "refuse" or "loop".
      progress: called with (clips read, clips in all) after each clip.
      data_dir: where TFDS keeps its data sets.
      argument: the name that errors give to `paths`.

    Returns:
      Videos (N, T, H, W, 3) float32 in [0, 1], and N class names, None for a clip
      outside a tree or without a label.

    Raises:
      UserError: a clip is missing, broken or too short.
    """
    found = find_labelled(
        paths, spec, short=short, data_dir=data_dir, argument=argument
    )
    return found.load(progress)


@dataclasses.dataclass(frozen=True)
class Found:
    """Clips that are found, and read when `load` is called.

    Attributes:
      count: how many there are.
      load: reads them; takes and gives what `load_labelled` does. Call it once.
    """

    count: int
    load: Callable[
        [Callable[[int, int], None] | None], tuple[np.ndarray, list[str | None]]
    ]


def find_labelled(
    paths: PathLike | Sequence[PathLike],
    spec: ModelSpec,
    *,
    short: str = "refuse",
    data_dir: PathLike | None = None,
    argument: str = "stimulus",
) -> Found:
    """Finds the clips that `load_labelled` reads.

    Raises:
      UserError: one is missing, or they are too many to hold.
    """
    total, sources = _sources(paths, argument, data_dir, spec)
    shape = (total, spec.frames, spec.size, spec.size, 3)
    with _named(argument, finding.listed(paths, argument)[0]):
        remedy = "name fewer, or write a table for --jobs"
        limits.check_kept(4 * math.prod(shape), f"to hold {total} clips", remedy)
    load_one = functools.partial(_load_one, spec=spec, short=short, argument=argument)

    def load(progress: Callable[[int, int], None] | None = None):
        videos, labels = np.empty(shape, np.float32), []
        for number, (video, label) in enumerate(_in_threads(load_one, sources)):
            videos[number] = video
            labels.append(label)
            if progress:
                progress(len(labels), total)
        return videos, labels

    return Found(total, load)


def read_tree(
    source: PathLike,
    short_side: int,
    *,
    progress: Callable[[int, int], None] | None = None,
    data_dir: PathLike | None = None,
    argument: str = "data",
) -> tuple[list[np.ndarray], np.ndarray, tuple[str, ...]]:
    """Reads a whole data set into memory, every frame of it, small.

    Args:
      source: a `<class>/<clip>` folder or `tfds:NAME/SPLIT`.
      short_side: pixels to which each clip's short side is resized.
      progress: called with (clips read, clips in all) after each clip.
      data_dir: where TFDS keeps its data sets.
      argument: the name that errors give to `source`.

    Returns:
      The clips, each (t, h, w, 3) uint8 with lengths and shapes of their own; labels
      (N,) int32; the class names that the labels index.

    Raises:
      UserError: the data holds no clip, or one that is broken or without a class.
    """
    if short_side < 1:
        raise UserError(f"short_side={short_side}: must be at least 1")
    classes = class_names(source, data_dir=data_dir, argument=argument)
    total, sources = _sources(source, argument, data_dir)

    def load(clip: "_Source") -> tuple[np.ndarray, int]:
        with _named(argument, clip.name):
            frames, label = clip.open()
            if label is None:
                what = "give <class>/<clip> folders or a labelled data set"
                raise UserError(f"has no class; {what}")
            return _shrunk(frames, short_side), classes.index(label)

    clips: list[np.ndarray] = []
    labels, size = [], 0
    for clip, label in _in_threads(load, sources):
        size += clip.nbytes
        with _named(argument, source):
            limits.check_data_set(size, len(clips))
        clips.append(clip)
        labels.append(label)
        if progress:
            progress(len(clips), total)
    return clips, np.array(labels, np.int32), classes


def class_names(
    paths: PathLike | Sequence[PathLike],
    *,
    data_dir: PathLike | None = None,
    argument: str = "data",
) -> tuple[str, ...]:
    """The classes of trees (sorted) or of TFDS data sets (in the order of the labels).

    Raises:
      UserError: there are none.
    """
    found = []
    for path in finding.listed(paths, argument):
        if str(path).startswith(tfds.PREFIX):
            data = tfds.Split(str(path), data_dir, argument)
            found.append(data.classes)
        else:
            clips = find_clips(path, argument=argument)
            found.append(tuple(sorted({c.label for c in clips if c.label})))
        if not found[-1]:
            raise bad_argument(
                argument, path, "has no classes; give <class>/<clip> folders"
            )
    if len(set(found)) == 1:
        return found[0]
    return tuple(sorted(set(itertools.chain(*found))))


# Reading.


def read_clip(path: PathLike, *, argument: str = "stimulus") -> np.ndarray:
    """Reads every frame of one clip.

    Args:
      path: a video, an array file or a folder of frames (frame_2 before frame_10). An
        array file holds one clip (t, h, w, 3), uint8 or float in [0, 1]; in a `.npz`
        it is `video`, `frames` or the first array.
      argument: the name that errors give to `path`.

    Returns:
      (t, h, w, 3) uint8. Grey clips are repeated over RGB, alpha is dropped.

    Raises:
      UserError: the clip is missing, empty, broken or of an unknown kind.
    """
    path = finding.expanded(path)
    if [clip.path for clip in find_clips(path, argument=argument)] != [path]:
        raise bad_argument(argument, path, "is a folder of clips; give one of them")
    with _named(argument, path):
        return _open(path).whole()


def _open(path: Path) -> Frames:
    if path.is_dir():
        return arrays.open_frames(path)
    ffmpeg.check_file(path)
    if path.stat().st_size == 0:
        raise UserError("the file is empty; replace it")
    if path.suffix.lower() in arrays.SUFFIXES:
        return arrays.open_array(path)
    return ffmpeg.open_video(path)


@contextlib.contextmanager
def _named(argument: str, name: object) -> Iterator[None]:
    """Says of errors in a clip which one it is."""
    try:
        yield
    except UserError as error:
        raise bad_argument(argument, name, error) from None
    except OSError as error:
        raise finding.unreadable(argument, name, error) from None


# From sources to arrays.


@dataclasses.dataclass(frozen=True)
class _Source:
    """A clip that is yet to be opened: `open()` gives its frames and its label."""

    name: str
    open: Callable[[], tuple[Frames, str | None]]


def _sources(
    paths: PathLike | Sequence[PathLike],
    argument: str,
    data_dir: PathLike | None,
    spec: ModelSpec | None = None,
) -> tuple[int, Iterator[_Source]]:
    """The number of clips behind `paths`, and the clips; a rendering needs the spec."""
    total = 0
    parts: list[Iterator[_Source]] = []

    def of_file(clip: Clip) -> _Source:
        return _Source(str(clip.path), lambda: (_open(clip.path), clip.label))

    def of_example(name: str, read: Callable[[], tfds.LabelledClip]) -> _Source:
        def opened() -> tuple[Frames, str | None]:
            frames, label = read()
            return in_memory(frames), label

        return _Source(name, opened)

    for path in finding.listed(paths, argument):
        if str(path).startswith(tfds.PREFIX):
            data = tfds.Split(str(path), data_dir, argument)
            total += data.count
            parts.append(itertools.starmap(of_example, data.clips()))
        elif str(path).startswith(_ACTIONS) and spec is not None:
            total += 1
            parts.append(iter([_rendering(str(path), spec, argument)]))
        else:
            clips = find_clips(path, argument=argument)
            total += len(clips)
            parts.append(map(of_file, clips))
    return total, itertools.chain(*parts)


@functools.cache
def _renderer(frames: int, size: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """`scenes.clip` for clips of a size, compiled.

    A scene is thousands of small operations, of which LLVM makes a program twice as
    soon where it may leave it slow: half a second for a clip.
    """
    draw = jax.jit(functools.partial(scenes.clip, frames=frames, size=size, fps=FPS))
    options: dict[str, Any] = {"xla_backend_optimization_level": 0}
    with executable_cache.with_jax_cache():  # for the next start
        lowered = draw.lower(jax.random.key(0), np.int32(0))
        return lowered.compile(compiler_options=options)


_ONE_COMPILES = threading.Lock()  # of the threads that want a renderer

# Class, seed, frames and size of actions/demo.npz, the stimulus of `leaps-jax demo`,
# for which no renderer is compiled.
_DEMO = ("waving both hands", 1, 31, 112)


def _draw(name: str, seed: int, frames: int, size: int) -> np.ndarray:
    """A rendering of a synthetic action, (frames, size, size, 3) uint8."""
    if (name, seed, frames, size) == _DEMO:
        with np.load(Path(scenes.__file__).with_name("demo.npz")) as kept:
            return kept["video"]
    with parallel.on_processor():  # in threads that must not wait for a GPU
        with _ONE_COMPILES:
            renderer = _renderer(frames, size)
        label = np.int32(motions.CLASSES.index(name))
        video, _ = renderer(jax.random.key(seed), label)
    return np.rint(np.asarray(video) * 255).astype(np.uint8)


def _rendering(path: str, spec: ModelSpec, argument: str) -> _Source:
    """A synthetic action that is just as long as the model's window."""
    name, _, seed = path.removeprefix(_ACTIONS).partition("/")
    if name not in motions.CLASSES:
        raise bad_argument(
            argument, path, f"no such class; {nearest(name, motions.CLASSES)}"
        )
    if seed and not seed.isdecimal():
        raise bad_argument(
            argument, path, f"seed {seed!r} is no number; write {name}/7"
        )

    def open_() -> tuple[Frames, str]:
        return in_memory(_draw(name, int(seed or 0), spec.window, spec.size)), name

    return _Source(path, open_)


def _in_threads(function: Callable[[_Source], Any], sources: Iterator[_Source]) -> Any:
    """Maps in order, a few clips at a time, so that few are held at full size."""
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        while batch := list(itertools.islice(sources, 2 * workers)):
            yield from pool.map(function, batch)


def _load_one(
    source: _Source, spec: ModelSpec, short: str, argument: str
) -> tfds.LabelledClip:
    # A bad `short` is refused here, before it could be blamed on the clip.
    sample_frames(spec.window, spec.frames, spec.stride, short=short)
    with _named(argument, source.name):
        frames, label = source.open()
        chosen = sample_frames(frames.count, spec.frames, spec.stride, short=short)
        video = np.empty((spec.frames, spec.size, spec.size, 3), np.float32)
        numbers = np.unique(chosen).tolist()
        for number, frame in zip(numbers, frames.read(numbers), strict=True):
            small = resizing.resize_and_crop(frame[None], spec.size)
            video[chosen == number] = np.clip(small / np.float32(255), 0, 1)
    return video, label


def _shrunk(frames: Frames, short_side: int) -> np.ndarray:
    """All frames of a clip with a short side of so many pixels."""
    shape = (
        frames.count,
        *resizing.short_side(frames.height, frames.width, short_side),
    )
    size = 3 * math.prod(shape)
    limits.check_kept(size, f"{frames.count} frames of it", "trim the clip")
    video = np.empty((*shape, 3), np.uint8)
    for i, frame in enumerate(frames.read(range(frames.count))):
        video[i] = resizing.resize_short_side(frame[None], short_side)[0]
    return video
