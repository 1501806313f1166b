"""Clips of TensorFlow Datasets, which is imported only when a data set is opened.

>>> split = Split("tfds:ucf101/train[:10]", None, "data")       # doctest: +SKIP
>>> frames, label = [read() for _, read in split.clips()][0]    # doctest: +SKIP
"""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from leaps_jax.data.arrays import as_rgb
from leaps_jax.errors import UserError, bad_argument, nearest

PREFIX = "tfds:"
LabelledClip = tuple[np.ndarray, str | None]  # (t, h, w, 3) uint8, and its class


class Split:
    """One split of a data set: a video feature and, mostly, a class label.

    Attributes:
      count: clips in it.
      classes: names that the labels index; empty without a label.
    """

    def __init__(
        self, name: str, data_dir: str | os.PathLike[str] | None, argument: str
    ) -> None:
        """Opens a split, and downloads the data set where that is needed.

        Args:
          name: `tfds:NAME/SPLIT`.
          data_dir: where data sets are kept; that of TFDS if None.
          argument: the name that errors give to `name`.

        Raises:
          UserError: there is no such split, or it has no clips.
        """
        self.name, self.argument = name, argument
        dataset, _, self.split = name.removeprefix(PREFIX).rpartition("/")
        if not dataset or not self.split:
            raise self._error("write tfds:NAME/SPLIT, for example tfds:ucf101/test")
        with self._errors(f"cannot open the data set {dataset!r}"):
            self.tfds = import_tfds()
            where = None if data_dir is None else os.fspath(data_dir)
            self.builder = self.tfds.builder(dataset, data_dir=where)
            self.builder.download_and_prepare()  # nothing where it is prepared already
            splits = self.builder.info.splits
        base = re.split(r"[\[+]", self.split)[0]
        if base not in splits:
            raise self._error(f"no split {base!r}; {nearest(base, splits)}")
        with self._errors(f"cannot read the split {self.split!r}"):
            self.count = splits[self.split].num_examples
        if not self.count:
            raise self._error("holds no clips; give another split")
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
            raise self._error(
                f"has video features {videos} and class labels {labels}; one of each is"
                " needed, a features.Video or Sequence(Image) and a ClassLabel"
            )
        self.video, self.label = videos[0], labels[0] if labels else None
        self.classes = tuple(features[labels[0]].names) if labels else ()

    def _error(self, reason: object) -> UserError:
        return bad_argument(self.argument, self.name, reason)

    def clips(self) -> Iterator[tuple[str, Callable[[], LabelledClip]]]:
        """Yields for each clip its name, for errors, and a function that reads it."""
        for i, read in enumerate(self._examples()):
            name = f"{self.name} clip {i}"
            yield name, functools.partial(self._clip, name, read)

    def _examples(self) -> Iterator[Callable[[], dict[str, Any]]]:
        with self._errors("cannot be read"):
            if self.builder.info.file_format.value == "array_record":
                examples = self.builder.as_data_source(self.split)
                for i in range(len(examples)):  # decoded in the reading threads
                    yield functools.partial(examples.__getitem__, i)
            else:
                dataset = self.builder.as_dataset(split=self.split)
                for example in self.tfds.as_numpy(dataset):
                    yield functools.partial(dict, example)

    def _clip(self, name: str, read: Callable[[], dict[str, Any]]) -> LabelledClip:
        with self._errors("cannot be read"):
            example = read()
            frames = np.asarray(example[self.video])
            label = None if self.label is None else int(example[self.label])
        try:
            frames = as_rgb(frames)
        except UserError as error:
            raise bad_argument(self.argument, name, error) from None
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
            raise self._error(f"TFDS needs {error.name}; {remedy}") from None
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[0].strip() if lines else type(error).__name__
            where = "name, split and data_dir (or TFDS_DATA_DIR)"
            raise self._error(f"{what} ({reason}); check {where}") from None


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
