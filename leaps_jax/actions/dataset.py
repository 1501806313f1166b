"""The synthetic actions as the TFDS data set `synthetic_actions`, fixed by a seed.

TensorFlow Datasets is imported only to write; what it wrote needs nothing of this
project to be read:

>>> write(gallery.Settings(), data_dir="data")  # doctest: +SKIP
'synthetic_actions'
>>> tfds.data_source("synthetic_actions/1.0.0", data_dir="data")  # doctest: +SKIP
"""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from leaps_jax.actions import gallery, motions
from leaps_jax.actions.skeleton import JOINTS
from leaps_jax.data.tfds import import_tfds
from leaps_jax.errors import UserError

CLIPS = 100  # of a class to train on
#: Raise it when the pictures of a seed change.
VERSION = "1.0.0"


def counts(clips: int = CLIPS) -> dict[str, int]:
    """Clips of a class in each split: a fifth as many to test on, at least one.

    >>> counts()
    {'train': 100, 'test': 20}
    """
    return {"train": clips, "test": max(1, clips // 5)}


def total(clips: int = CLIPS) -> int:
    """Clips of all classes and splits."""
    return len(motions.CLASSES) * sum(counts(clips).values())


def check(
    settings: gallery.Settings,
    clips: int = CLIPS,
    *,
    data_dir: str | None = None,
    overwrite: bool = False,
) -> None:
    """Raises what `write` would; ask before the work."""
    if clips < 1:
        raise UserError(f"clips={clips}: must be at least 1")
    with _quiet():
        path = _builder(settings, clips, data_dir).data_path
    if path.exists() and not overwrite:
        what = f"{path} exists; use it, choose another or --overwrite"
        raise UserError(f"data-dir={str(data_dir)!r}: {what}")


def write(
    settings: gallery.Settings,
    clips: int = CLIPS,
    *,
    data_dir: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Renders the data set and writes it as array_record files.

    Its features are `video` (t, size, size, 3) of JPEG frames at 30 a second, `label`,
    `joints` (t, 17, 2) x and y in pixels, in the order of `skeleton.JOINTS`, and `seed`
    and `id`, from which `gallery.draw` renders the clip again.

    Args:
      settings: of the clips.
      clips: of a class in the split "train"; "test" has a fifth as many.
      data_dir: where TFDS keeps its data sets; by default `TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.
      overwrite: replace the same data set.
      progress: called with the number of clips rendered so far.

    Returns:
      Its name: "synthetic_actions", and for other settings than the default a
      configuration that names them.

    Raises:
      UserError: it exists, the folder cannot be written, or TFDS is missing.
    """
    check(settings, clips, data_dir=data_dir, overwrite=overwrite)
    tfds = _tfds()
    anew = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS  # deletes what is there
    try:
        with _quiet():
            _builder(settings, clips, data_dir, progress).download_and_prepare(
                download_config=tfds.download.DownloadConfig(download_mode=anew)
            )
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise UserError(f"data-dir={str(data_dir)!r}: {what}; choose another") from None
    return "/".join(["synthetic_actions", *filter(None, [_variant(settings, clips)])])


def _variant(settings: gallery.Settings, clips: int) -> str:
    """The name of a configuration, empty for the default."""
    if settings == gallery.Settings() and clips == CLIPS:
        return ""
    s = settings
    return f"{clips}_clips_{s.frames}x{s.stride}_{s.size}px_seed{s.seed}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from chatting: its bars, its log, and what it prints."""
    tfds, log = _tfds(), logging.getLogger("absl")
    level = log.level
    tfds.disable_progress_bar()
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        log.setLevel(level)


def _builder(
    settings: gallery.Settings,
    clips: int,
    data_dir: str | None,
    progress: Callable[[int], None] | None = None,
) -> Any:
    tfds = _tfds()
    frames, size = settings.source_frames, settings.size
    features = {
        # PNG would take four times the room
        "video": tfds.features.Video((frames, size, size, 3), encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=list(motions.CLASSES)),
        "joints": tfds.features.Tensor(
            shape=(frames, len(JOINTS), 2), dtype=np.float32
        ),
        "seed": np.int64,
        "id": tfds.features.Text(),
    }
    done = 0

    class SyntheticActions(
        tfds.core.GeneratorBasedBuilder,  # type: ignore[name-defined]
        skip_registration=True,  # type: ignore[call-arg]
    ):
        """A person who does one of 23 things; many pairs differ in motion alone."""

        VERSION = tfds.core.Version(VERSION)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("video", "label"),
            )

        def _split_generators(self, dl_manager):
            each = counts(clips)
            return {
                split: self._generate_examples(split, each[split]) for split in each
            }

        def _generate_examples(self, split, count) -> Iterator[tuple[str, dict]]:
            nonlocal done
            for label, name in enumerate(motions.CLASSES):
                for number in range(count):
                    scene = gallery.draw(settings, split, label, number)
                    identity = f"{split}/{name}/{number:03}"
                    yield (
                        identity,
                        {
                            "video": scene.video,
                            "label": label,
                            "joints": scene.joints,
                            "seed": settings.seed,
                            "id": identity,
                        },
                    )
                    done += 1
                    if progress:
                        progress(done)

    name = _variant(settings, clips)
    return SyntheticActions(
        data_dir=None if data_dir is None else os.fspath(data_dir),
        config=tfds.core.BuilderConfig(name=name) if name else None,
        file_format="array_record",
    )


def _tfds() -> Any:
    try:
        return import_tfds()
    except ImportError as error:
        remedy = "pip install 'leaps_jax[tfds]'"
        raise UserError(f"tfds: the data set needs {error.name}; {remedy}") from None
