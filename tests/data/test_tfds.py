"""Clips of TensorFlow Datasets come back as written, and bad names say so."""

import numpy as np
import pytest
from clip_files import SPEC, circle, refusal

from leaps_jax.data.clips import class_names, load_labelled, load_stimuli, read_tree
from leaps_jax.model import ModelSpec


def test_tfds_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    text = refusal(load_stimuli, "tfds:ucf101/test", SPEC)
    assert text.startswith("stimulus='tfds:ucf101/test'")
    assert "pip install 'leaps_jax[tfds]'" in text
    assert "tfds:NAME/SPLIT" in refusal(load_stimuli, "tfds:ucf101", SPEC)


COUNTS = {"train": 6, "test": 2}


def tfds_clip(split, i):
    video = circle(8 + i, 30, 40)
    video[:, :6, :6] = 20 * i + (10 if split == "test" else 0)
    return video


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory):
    """The same clips as two features in two file formats, written by TFDS."""
    pytest.importorskip("tensorflow")
    tfds = pytest.importorskip("tensorflow_datasets")

    class Clips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            if self.name == "sequences":
                video = tfds.features.Sequence(tfds.features.Image(shape=(30, 40, 3)))
            else:
                video = tfds.features.Video(shape=(None, 30, 40, 3))
            features = {"frames": video, "name": tfds.features.Text()}
            features["label"] = tfds.features.ClassLabel(names=["walk", "run"])
            if self.name == "two_videos":
                features["more"] = tfds.features.Video(shape=(None, 30, 40, 3))
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in COUNTS}

        def _generate_examples(self, split):
            for i in range(COUNTS[split]):
                frames = list(tfds_clip(split, i))
                example = {"frames": frames, "name": f"{i}", "label": i % 2}
                if self.name == "two_videos":
                    example["more"] = frames
                yield i, example

    names = ("Videos", "Sequences", "TwoVideos")
    builders = [type(name, (Clips,), {}, skip_registration=True) for name in names]
    folders = {}
    for file_format in ("array_record", "tfrecord"):
        folders[file_format] = tmp_path_factory.mktemp(file_format)
        for builder in builders:
            builder(
                data_dir=folders[file_format], file_format=file_format
            ).download_and_prepare()
    return folders


def by_content(videos):
    """TFDS shuffles; the corner of each clip says which one it is."""
    return sorted(int(np.rint(np.mean(v[0, :3, :3]))) for v in videos)


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("name", ["videos", "sequences"])
def test_tfds(data_dirs, file_format, name, monkeypatch):
    folder = data_dirs[file_format]
    clips, labels, classes = read_tree(f"tfds:{name}/train", 30, data_dir=folder)
    assert classes == ("walk", "run") and by_content(clips) == [0, 20, 40, 60, 80, 100]
    for clip, label in zip(clips, labels, strict=True):
        i = len(clip) - 8
        np.testing.assert_array_equal(clip, tfds_clip("train", i))
        assert label == i % 2
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    videos = load_stimuli(f"tfds:{name}/test", SPEC, data_dir=folder)
    assert videos.shape == (2, 4, 24, 24, 3)
    videos, labels = load_labelled(f"tfds:{name}/train[:3]", SPEC, data_dir=folder)
    assert videos.shape[0] == len(labels) == 3 and set(labels) <= {"walk", "run"}
    names = class_names(f"tfds:{name}/test", data_dir=folder)
    assert names == ("walk", "run")


def test_tfds_refusals(data_dirs):
    folder = data_dirs["array_record"]

    def text(name, **kwargs):
        return refusal(load_stimuli, name, SPEC, data_dir=folder, **kwargs)

    assert "did you mean train" in text("tfds:videos/trian")
    assert "'no_such_data'" in text("tfds:no_such_data/train")
    assert "'more'" in text("tfds:two_videos/train")
    assert "train[" in text("tfds:videos/train[:x]")
    assert "holds no clips" in text("tfds:videos/train[:0]")
    long = ModelSpec("long", frames=9, size=24, classes=("a",))
    short = refusal(load_stimuli, "tfds:videos/test", long, data_dir=folder)
    assert "tfds:videos/test clip" in short and "8 frames" in short


def test_tfds_honours_its_environment(data_dirs):
    """TFDS reads TFDS_DATA_DIR when it is imported, so in a process of its own."""
    import os
    import subprocess
    import sys

    code = (
        "from leaps_jax.data.clips import read_tree;"
        "print(len(read_tree('tfds:videos/test', 30)[0]))"
    )
    environment = os.environ | {"TFDS_DATA_DIR": str(data_dirs["array_record"])}
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "2", result.stderr
