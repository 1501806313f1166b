"""Clips from files, folders of frames, class trees and TFDS data sets.

Knows file formats, mediapy and TensorFlow Datasets, each imported only where it is
needed: `.npy` and `.npz` clips load with numpy alone. Knows no model, only the numbers
of its `ModelSpec`. A place to read from is one of

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
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from leaps_jax.actions import motions, scenes
from leaps_jax.errors import UserError, nearest
from leaps_jax.model import ModelSpec
from leaps_jax.runtime import parallel
from leaps_jax.video import sample_frames

PathLike = str | os.PathLike[str]

_VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".gif")
_ARRAYS = (".npy", ".npz")
_FRAMES = (".png", ".jpg", ".jpeg", ".webp")
_ACCEPTED = f"{' '.join(_VIDEOS + _ARRAYS)} or a folder of {' '.join(_FRAMES)} frames"
_TFDS = "tfds:"
_ACTIONS = "actions:"
FPS = 30  # frames a second that a model's stride counts in
_LARGEST = 4 * 2**30  # bytes of one decoded clip; an hour of film is a mistake


@dataclasses.dataclass(frozen=True)
class Clip:
    """Where a clip lies.

    Attributes:
      path: a file or a folder of frames.
      label: the name of its class folder; None outside a `<class>/<clip>` tree.
    """

    path: Path
    label: str | None = None


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
        raise _error(argument, path, f"holds {total} clips; name one of them")
    video, _ = _load_one(next(sources), spec, short, argument)
    return video


def load_labelled(
    paths: PathLike | Sequence[PathLike],
    spec: ModelSpec,
    *,
    short: str = "refuse",
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    data_dir: PathLike | None = None,
    argument: str = "stimulus",
) -> tuple[np.ndarray, list[str | None]]:
    """Loads clips with the names of their classes; see `load_stimuli`.

    Args:
      paths: clips, `<class>/<clip>` folders or `tfds:NAME/SPLIT`.
      spec: of the model.
      short: "refuse" or "loop".
      limit: take this many clips, evenly spaced over all of them.
      progress: called with (clips read, clips in all) after each clip.
      data_dir: where TFDS keeps its data sets.
      argument: the name that errors give to `paths`.

    Returns:
      Videos (N, T, H, W, 3) float32 in [0, 1], and N class names, None for a clip
      outside a tree or without a label.

    Raises:
      UserError: a clip is missing, broken or too short.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: must be at least 1")
    total, sources = _sources(paths, argument, data_dir, spec)
    if limit is not None and limit < total:
        wanted = {i * total // limit for i in range(limit)}
        sources = (source for i, source in enumerate(sources) if i in wanted)
        total = limit
    load = functools.partial(_load_one, spec=spec, short=short, argument=argument)
    videos, labels = [], []
    for video, label in _in_threads(load, sources):
        videos.append(video)
        labels.append(label)
        if progress:
            progress(len(videos), total)
    return np.stack(videos), labels


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

    def load(one: "_Source") -> tuple[np.ndarray, int]:
        frames, label = one.read()
        if label is None:
            what = "has no class; give <class>/<clip> folders or a labelled data set"
            raise _error(argument, one.name, what)
        return _resize_short_side(frames, short_side), classes.index(label)

    clips, labels = [], []
    for clip, label in _in_threads(load, sources):
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
    for path in _listed(paths, argument):
        if str(path).startswith(_TFDS):
            data = _TfdsData(str(path), data_dir, argument)
            found.append(data.classes)
        else:
            clips = find_clips(path, argument=argument)
            found.append(tuple(sorted({c.label for c in clips if c.label})))
        if not found[-1]:
            raise _error(argument, path, "has no classes; give <class>/<clip> folders")
    if len(set(found)) == 1:
        return found[0]
    return tuple(sorted(set(itertools.chain(*found))))


# Finding.


def find_clips(
    paths: PathLike | Sequence[PathLike], *, argument: str = "stimulus"
) -> list[Clip]:
    """Lists the clips of files, folders of frames, and folders of clips or classes.

    Hidden files and, inside folders, files of other kinds are passed over.

    Args:
      paths: what to look through, in order; the contents of folders are sorted.
      argument: the name that errors give to `paths`.

    Raises:
      UserError: a path does not exist, is of an unknown kind, or holds no clip.

    >>> find_clips("data")  # doctest: +SKIP
    [Clip(path=Path('data/run/a.mp4'), label='run'), ...]
    """
    clips: list[Clip] = []
    for path in _listed(paths, argument):
        clips += _find_in(Path(path).expanduser(), argument)
    return clips


def _find_in(path: Path, argument: str) -> list[Clip]:
    if not path.exists():
        hint = "no such file or folder; a TFDS data set is written tfds:NAME/SPLIT"
        raise _error(argument, path, hint)
    if _is_clip(path):
        return [Clip(path)]
    if not path.is_dir():
        kind = (
            f"{path.suffix!r} is not a clip's extension" if path.suffix else "no clip"
        )
        raise _error(argument, path, f"{kind}; accepted: {_ACCEPTED}")
    clips = []
    for child in _children(path):
        if _is_clip(child):
            clips.append(Clip(child))
        elif child.is_dir():
            inside = [Clip(c, child.name) for c in _children(child) if _is_clip(c)]
            if not inside:
                what = f"the class folder {child.name!r} holds no clips"
                raise _error(argument, path, f"{what}; fill or remove it")
            clips += inside
    if not clips:
        raise _error(argument, path, f"holds no clips; accepted: {_ACCEPTED}")
    return clips


def _is_clip(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix.lower() in _VIDEOS + _ARRAYS
    children = _children(path)
    # A poster image beside videos does not make their folder a clip.
    return any(_is_frame(c) for c in children) and not any(
        c.is_dir() or c.suffix.lower() in _VIDEOS + _ARRAYS for c in children
    )


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() in _FRAMES and path.is_file()


def _children(folder: Path) -> list[Path]:
    return sorted(c for c in folder.iterdir() if not c.name.startswith("."))


def _listed(paths: PathLike | Sequence[PathLike], argument: str) -> Sequence[PathLike]:
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not listed:
        raise UserError(f"{argument}=[]: give at least one clip")
    return listed


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
    path = Path(path).expanduser()
    if [clip.path for clip in _find_in(path, argument)] != [path]:
        raise _error(argument, path, "is a folder of clips; give one of them")
    try:
        if path.is_dir():
            frames = _read_frames(path)
        elif path.stat().st_size == 0:
            raise UserError("the file is empty; replace it")
        elif path.suffix.lower() in _ARRAYS:
            frames = _as_rgb(_read_array(path))
        else:
            frames = _read_video(path)
    except (UserError, OSError) as error:
        raise _error(argument, path, error) from None
    return frames


def _read_video(path: Path) -> np.ndarray:
    try:
        import imageio_ffmpeg
        import mediapy
    except ImportError as error:
        remedy = "pip install mediapy 'imageio-ffmpeg<0.8', or give a .npz clip"
        raise UserError(f"videos need {error.name}; {remedy}") from None
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    mediapy.set_ffmpeg(ffmpeg)
    if broken := _what_is_broken(path, ffmpeg):
        raise UserError(f"is not a whole video ({broken}); replace or re-encode it")
    try:
        with mediapy.VideoReader(path) as reader:
            size = max(reader.num_images, 1) * math.prod(reader.shape) * 3
            if size > _LARGEST:
                raise UserError(
                    f"decodes to {size / 2**30:.1f} GiB, the most is"
                    f" {_LARGEST // 2**30}; trim the clip or make its frames smaller"
                )
            frames = list(reader)
    except RuntimeError as error:
        reason = _last_line(str(error))
        raise UserError(f"cannot be decoded ({reason}); re-encode it") from None
    if not frames:
        raise UserError("has no frames; replace it")
    return np.stack(frames)


def _what_is_broken(path: Path, ffmpeg: str) -> str | None:
    """Why a file is no video or not all of one; ffmpeg decodes half a file gladly."""
    command = [ffmpeg, "-v", "error", "-nostdin", "-i", str(path), "-map", "0:v:0"]
    command += ["-c", "copy", "-f", "null", "-"]  # walks the packets, decodes nothing
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if result.returncode:
        return _last_line(result.stderr) or f"ffmpeg failed with {result.returncode}"
    for line in result.stderr.splitlines():
        if re.search("partial file|ended prematurely|truncated", line):
            return _last_line(line)
    with path.open("rb") as file:  # two formats whose ends ffmpeg does not miss
        head = file.read(8)
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 64))
        tail = file.read()
    if head[:4] == b"RIFF" and 8 + int.from_bytes(head[4:], "little") > end:
        return "the file is cut short"
    if head[:3] == b"GIF" and not tail.rstrip(b"\0").endswith(b";"):
        return "the file is cut short"
    return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # "[mov @ 0x55d0] moov atom not found": the address tells a user nothing.
    return re.sub(r"^(\[[^]]*\] ?)+", "", lines[-1]) if lines else ""


def _read_frames(folder: Path) -> np.ndarray:
    from PIL import Image

    def natural(path: Path) -> list[Any]:
        return [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", path.name)]

    frames: list[np.ndarray] = []
    for path in sorted(filter(_is_frame, _children(folder)), key=natural):
        try:
            with Image.open(path) as image:
                if image.mode.startswith("I"):  # 16-bit grey, which convert() clips
                    frame = (np.asarray(image) >> 8).astype(np.uint8)
                    frame = np.repeat(frame[..., None], 3, axis=-1)
                else:
                    frame = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            reason = _last_line(str(error))
            raise UserError(f"{path.name} is no image ({reason}); replace it") from None
        if frames and frame.shape != frames[0].shape:
            (h, w), (h0, w0) = frame.shape[:2], frames[0].shape[:2]
            sizes = f"{path.name} is {w}x{h} and the first frame is {w0}x{h0}"
            raise UserError(f"{sizes}; make all frames the same size")
        frames.append(frame)
    return np.stack(frames)


def _read_array(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if not loaded.files:
                raise UserError("holds no array; save one (t, h, w, 3) array")
            keys = [k for k in ("video", "frames") if k in loaded.files]
            return loaded[(keys or loaded.files)[0]]
    except UserError:
        raise
    # numpy and zipfile raise what they like at a damaged file.
    except Exception as error:
        reason = _last_line(str(error)).partition(". ")[0]
        what = f"is no array file ({reason}); save the clip with np.savez"
        raise UserError(what) from None


def _as_rgb(array: np.ndarray) -> np.ndarray:
    """An array of pixels as (t, h, w, 3) uint8."""
    shape = f"has shape {array.shape}"
    if array.ndim == 3 and array.shape[-1] not in (3, 4):
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise UserError(f"{shape}; a clip is (t, h, w, 3)")
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(low) or not np.isfinite(high):
            raise UserError("has non-finite pixels; replace the NaN or infinite values")
        if low < -1e-3 or high > 1 + 1e-3:
            found = f"has float pixels from {low:.4g} to {high:.4g}"
            raise UserError(f"{found}; scale them to [0, 1] or save 0..255 as uint8")
        array = np.rint(np.clip(array, 0, 1).astype(np.float32) * 255)
    elif not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"has pixels of type {array.dtype}; save uint8 or float32")
    elif low < 0 or high > 255:
        raise UserError(f"has pixels from {low} to {high}; whole numbers go 0..255")
    array = array[..., :3].astype(np.uint8)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


# TensorFlow Datasets.


class _TfdsData:
    """One split of a TFDS data set: a video feature and, mostly, a class label."""

    def __init__(self, name: str, data_dir: PathLike | None, argument: str) -> None:
        self.name, self.argument = name, argument
        dataset, _, self.split = name.removeprefix(_TFDS).rpartition("/")
        if not dataset or not self.split:
            raise self.error("write tfds:NAME/SPLIT, for example tfds:ucf101/test")
        with self._errors(f"cannot open the data set {dataset!r}"):
            self.tfds = import_tfds()
            where = None if data_dir is None else os.fspath(data_dir)
            self.builder = self.tfds.builder(dataset, data_dir=where)
            self.builder.download_and_prepare()  # nothing where it is prepared already
            splits = self.builder.info.splits
        base = re.split(r"[\[+]", self.split)[0]
        if base not in splits:
            raise self.error(f"no split {base!r}; {nearest(base, splits)}")
        with self._errors(f"cannot read the split {self.split!r}"):
            self.count = splits[self.split].num_examples
        if not self.count:
            raise self.error("holds no clips; give another split")
        kinds = self.tfds.features
        features = dict(self.builder.info.features.items())
        videos = [
            key
            for key, feature in features.items()
            if isinstance(feature, kinds.Video)
            or (
                isinstance(feature, kinds.Sequence)
                and isinstance(feature.feature, kinds.Image)
            )
        ]
        labels = [k for k, f in features.items() if isinstance(f, kinds.ClassLabel)]
        if len(videos) != 1 or len(labels) > 1:
            raise self.error(
                f"has video features {videos} and class labels {labels}; one of each is"
                " needed, a features.Video or Sequence(Image) and a ClassLabel"
            )
        self.video, self.label = videos[0], labels[0] if labels else None
        self.classes = tuple(features[labels[0]].names) if labels else ()

    def error(self, reason: object) -> UserError:
        return _error(self.argument, self.name, reason)

    def sources(self) -> Iterator["_Source"]:
        for i, read in enumerate(self._readers()):
            name = f"{self.name} clip {i}"
            yield _Source(name, functools.partial(self._example, name, read))

    def _readers(self) -> Iterator[Callable[[], dict[str, Any]]]:
        with self._errors("cannot be read"):
            if self.builder.info.file_format.value == "array_record":
                examples = self.builder.as_data_source(self.split)
                for i in range(len(examples)):  # decoded in the reading threads
                    yield functools.partial(examples.__getitem__, i)
            else:
                dataset = self.builder.as_dataset(split=self.split)
                for example in self.tfds.as_numpy(dataset):
                    yield functools.partial(dict, example)

    def _example(
        self, name: str, read: Callable[[], dict[str, Any]]
    ) -> tuple[np.ndarray, str | None]:
        with self._errors("cannot be read"):
            example = read()
            frames = np.asarray(example[self.video])
            label = None if self.label is None else int(example[self.label])
        try:
            frames = _as_rgb(frames)
        except UserError as error:
            raise _error(self.argument, name, error) from None
        if label is None or label < 0:  # test splits without answers say -1
            return frames, None
        return frames, self.classes[label]

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turns whatever TFDS raises into one line."""
        try:
            yield
        except UserError:
            raise
        except ImportError as error:
            remedy = "pip install 'leaps_jax[tfds]'"
            raise self.error(f"TFDS needs {error.name}; {remedy}") from None
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[0].strip() if lines else type(error).__name__
            where = "name, split and data_dir (or TFDS_DATA_DIR)"
            raise self.error(f"{what} ({reason}); check {where}") from None


def import_tfds() -> Any:
    """TensorFlow Datasets, quiet and off the GPUs.

    Raises:
      ImportError: it or TensorFlow is missing.
    """
    # Silences TensorFlow's greeting; it is here to read files, not to be fast.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")  # else it takes all of JAX's memory
    return tfds


# From sources to arrays.


@dataclasses.dataclass(frozen=True)
class _Source:
    """A clip that is yet to be read: `read()` gives its frames and its label."""

    name: str
    read: Callable[[], tuple[np.ndarray, str | None]]


def _sources(
    paths: PathLike | Sequence[PathLike],
    argument: str,
    data_dir: PathLike | None,
    spec: ModelSpec | None = None,
) -> tuple[int, Iterator[_Source]]:
    """The number of clips behind `paths`, and the clips; a rendering needs the spec."""
    total, parts = 0, []

    def of_file(clip: Clip) -> _Source:
        read = functools.partial(read_clip, clip.path, argument=argument)
        return _Source(str(clip.path), lambda: (read(), clip.label))

    for path in _listed(paths, argument):
        if str(path).startswith(_TFDS):
            data = _TfdsData(str(path), data_dir, argument)
            total += data.count
            parts.append(data.sources())
        elif str(path).startswith(_ACTIONS) and spec is not None:
            total += 1
            parts.append(iter([_rendering(str(path), spec, argument)]))
        else:
            clips = find_clips(path, argument=argument)
            total += len(clips)
            parts.append(map(of_file, clips))
    return total, itertools.chain(*parts)


def _rendering(path: str, spec: ModelSpec, argument: str) -> _Source:
    """A synthetic action that is just as long as the model's window."""
    name, _, seed = path.removeprefix(_ACTIONS).partition("/")
    if name not in motions.CLASSES:
        raise _error(argument, path, f"no such class; {nearest(name, motions.CLASSES)}")
    if seed and not seed.isdecimal():
        raise _error(argument, path, f"seed {seed!r} is no number; write {name}/7")

    def read() -> tuple[np.ndarray, str]:
        with parallel.on_processor():  # in threads that must not wait for a GPU
            video, _ = scenes.clip(
                jax.random.key(int(seed or 0)),
                motions.CLASSES.index(name),
                frames=spec.window,
                size=spec.size,
                fps=FPS,
            )
        return np.rint(np.asarray(video) * 255).astype(np.uint8), name

    return _Source(path, read)


def _in_threads(function: Callable[[_Source], Any], sources: Iterator[_Source]) -> Any:
    """Maps in order, a few clips at a time, so that few are held at full size."""
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        while batch := list(itertools.islice(sources, 2 * workers)):
            yield from pool.map(function, batch)


def _load_one(
    source: _Source, spec: ModelSpec, short: str, argument: str
) -> tuple[np.ndarray, str | None]:
    # A bad `short` is refused here, before it could be blamed on the clip.
    sample_frames(spec.window, spec.frames, spec.stride, short=short)
    frames, label = source.read()
    try:
        chosen = sample_frames(len(frames), spec.frames, spec.stride, short=short)
    except UserError as error:
        raise _error(argument, source.name, error) from None
    video = _resize_and_crop(frames[chosen], spec.size) / np.float32(255)
    return np.clip(video, 0, 1), label


# By Pillow, since each clip has another shape, for which JAX would compile anew, and
# since clips are read while the device works. Its float images resized bilinearly are
# those of `jax.image.resize` to 0.01 of 255; `mediapy.resize_video` is another filter,
# Lanczos, and rounds to 8 bits.


def _resize_and_crop(frames: np.ndarray, size: int) -> np.ndarray:
    """`video.resize_and_crop` of (t, h, w, 3) uint8, as float32 up to 255."""
    h, w = frames.shape[1:3]
    height, width = round(h * size / min(h, w)), round(w * size / min(h, w))
    top, left = (height - size) // 2, (width - size) // 2
    box = (
        left * w / width,
        top * h / height,
        (left + size) * w / width,
        (top + size) * h / height,
    )
    return np.stack([_resized(frame, size, size, box) for frame in frames])


def _resize_short_side(frames: np.ndarray, size: int) -> np.ndarray:
    """Resizes (t, h, w, 3) uint8, bilinear and antialiased, and keeps the aspect."""
    h, w = frames.shape[1:3]
    if min(h, w) == size:
        return frames
    height, width = round(h * size / min(h, w)), round(w * size / min(h, w))
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        resized[i] = np.rint(_resized(frame, height, width))
    return resized


def _resized(
    frame: np.ndarray,
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """(h, w, 3) uint8, or a box of it (left, top, right, bottom), as float32."""
    from PIL import Image

    resized = np.empty((height, width, 3), np.float32)
    for c in range(3):
        channel = Image.fromarray(frame[..., c]).convert("F")
        channel = channel.resize((width, height), Image.Resampling.BILINEAR, box)
        resized[..., c] = np.asarray(channel)
    return resized


def _error(argument: str, value: object, reason: object) -> UserError:
    return UserError(f"{argument}={str(value)!r}: {reason}")
