"""Clips of every kind come back as they were written, and bad ones say so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax import video
from leaps_jax.actions import scenes
from leaps_jax.data import stimuli
from leaps_jax.errors import UserError
from leaps_jax.model import ModelSpec

mediapy = pytest.importorskip("mediapy")
imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
Image = pytest.importorskip("PIL.Image")

SPEC = ModelSpec("any", frames=4, size=24, stride=2, classes=("a", "b"))
CODECS = {"mp4": "h264", "mov": "h264", "mkv": "h264", "avi": "mpeg4", "webm": "vp9"}
VIDEOS = [*CODECS, "gif"]


def circle(frames=12, height=48, width=64):
    mediapy.set_ffmpeg(imageio_ffmpeg.get_ffmpeg_exe())
    return mediapy.to_uint8(mediapy.moving_circle((height, width), frames))


def write(path, video, fps=25.0):
    suffix = path.suffix[1:].lower()
    if suffix == "gif":
        mediapy.write_video(path, video, fps=fps, codec="gif")
    else:
        quality = {"crf": 10} if suffix == "webm" else {"qp": 2}
        mediapy.write_video(path, video, fps=fps, codec=CODECS[suffix], **quality)
    return path


def write_frames(folder, video, suffix="png"):
    folder.mkdir(parents=True)
    for i, frame in enumerate(video):
        Image.fromarray(frame).save(folder / f"frame_{i}.{suffix}")
    return folder


def tree(root, counts):
    """A `<class>/<clip>` tree; clip i of class j is grey of value 40 j + i."""
    for j, (label, count) in enumerate(counts.items()):
        (root / label).mkdir(parents=True)
        for i in range(count):
            clip = np.full((10, 30, 40, 3), 40 * j + i, np.uint8)
            np.savez(root / label / f"{i:03}.npz", video=clip)
    return root


def refusal(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def rms(a, b):
    return float(np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2)))


# Reading.


@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize("fps", [5.0, 29.97])
def test_videos_come_back(tmp_path, suffix, fps):
    video = circle()
    read = stimuli.read_clip(write(tmp_path / f"clip.{suffix}", video, fps))
    assert read.dtype == np.uint8 and read.shape == video.shape
    for i in range(len(video)):  # and in the order they were written
        errors = [rms(read[i], frame) for frame in video]
        assert errors[i] < 8 and errors[i] == min(errors)


@pytest.mark.parametrize("height, width", [(49, 63), (33, 64), (182, 17)])
def test_odd_sizes(tmp_path, height, width):
    video = circle(5, height, width)
    read = stimuli.read_clip(write(tmp_path / "odd.mp4", video))
    assert read.shape == video.shape and rms(read, video) < 8


def test_gif_with_uneven_durations(tmp_path):
    images = [Image.fromarray(frame) for frame in circle(6)]
    path = tmp_path / "slow.gif"
    durations = [100, 20, 300, 50, 50, 1000]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations)
    assert len(stimuli.read_clip(path)) == 6


def test_frames_in_natural_order(tmp_path):
    video = np.arange(12, dtype=np.uint8)[:, None, None, None] * 20
    video = np.broadcast_to(video, (12, 6, 8, 3))
    folder = write_frames(tmp_path / "frames", video)
    (folder / ".hidden.png").write_text("not an image")
    (folder / "notes.txt").write_text("not a frame")
    np.testing.assert_array_equal(stimuli.read_clip(folder), video)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_frames(tmp_path, suffix):
    video = circle(3)
    folder = write_frames(tmp_path / "frames", video, suffix)
    assert rms(stimuli.read_clip(folder), video) < 12


def test_frames_with_alpha_palette_and_16_bit_grey(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    alpha = np.concatenate([rgb, np.full((6, 8, 1), 9, np.uint8)], axis=-1)
    Image.fromarray(grey).save(tmp_path / "1.png")
    Image.fromarray(alpha).save(tmp_path / "2.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "3.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "4.png")
    np.testing.assert_array_equal(stimuli.read_clip(tmp_path), np.stack([rgb] * 4))


@pytest.mark.parametrize("key", ["video", "frames", "anything"])
def test_npz_keys(tmp_path, key):
    video = circle(3)
    arrays = {"zzz": np.zeros(3), key: video} if key != "anything" else {key: video}
    np.savez(tmp_path / "clip.npz", **arrays)
    np.testing.assert_array_equal(stimuli.read_clip(tmp_path / "clip.npz"), video)


def test_array_types(tmp_path):
    video = circle(3)
    path = tmp_path / "clip.npy"
    variants = {
        "float32": (video / 255).astype(np.float32),
        "float16": (video / 255).astype(np.float16),
        "int64": video.astype(np.int64),
        "rgba": np.concatenate([video, video[..., :1]], axis=-1),
    }
    for name, array in variants.items():
        np.save(path, array)
        np.testing.assert_array_equal(stimuli.read_clip(path), video, name)
    grey = video[..., 0]
    for array in (grey, grey[..., None]):
        np.save(path, array)
        expected = np.repeat(grey[..., None], 3, axis=-1)
        np.testing.assert_array_equal(stimuli.read_clip(path), expected)


def test_arrays_need_no_video_packages(tmp_path, monkeypatch):
    np.save(tmp_path / "clip.npy", circle(9))
    (tmp_path / "clip.mp4").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    assert stimuli.load_stimuli(tmp_path / "clip.npy", SPEC).shape[0] == 1
    assert "pip install" in refusal(stimuli.read_clip, tmp_path / "clip.mp4")


# Sampling.


def test_load_samples_around_the_middle_and_crops(tmp_path):
    ramp = np.arange(11, dtype=np.uint8)[:, None, None, None] * 20
    path = tmp_path / "ramp.npy"
    np.save(path, np.broadcast_to(ramp, (11, 24, 40, 3)))
    video = stimuli.load_stimuli([path], SPEC)
    assert video.shape == (1, 4, 24, 24, 3) and video.dtype == np.float32
    np.testing.assert_array_equal(
        video[0, :, 0, 0, 0], np.float32([40, 80, 120, 160]) / np.float32(255)
    )


@pytest.mark.parametrize("height, width", [(24, 48), (48, 24), (31, 77), (12, 20)])
def test_never_stretched(tmp_path, height, width):
    """A circle stays as wide as it is high."""
    y, x = np.mgrid[:height, :width]
    radius = min(height, width) / 3
    inside = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) < radius
    np.save(tmp_path / "disc.npy", np.repeat(inside[None] * 1.0, 8, axis=0))
    disc = stimuli.load_stimuli(tmp_path / "disc.npy", SPEC)[0, 0, ..., 0]
    assert abs(disc.sum(0).max() - disc.sum(1).max()) < 1.5


def test_short_clips_are_refused_or_looped(tmp_path):
    np.save(tmp_path / "short.npy", circle(5))
    text = refusal(stimuli.load_stimuli, tmp_path / "short.npy", SPEC)
    assert "short.npy" in text and "5 frames" in text and "need 7" in text
    looped = stimuli.load_stimuli(tmp_path / "short.npy", SPEC, short="loop")
    assert looped.shape == (1, 4, 24, 24, 3)
    text = refusal(stimuli.load_stimuli, tmp_path / "short.npy", SPEC, short="x")
    assert text.startswith("short='x'")


def test_several_paths_keep_their_order(tmp_path):
    for name, value in {"b": 10, "a": 20}.items():
        np.save(tmp_path / f"{name}.npy", np.full((8, 24, 24, 3), value, np.uint8))
    paths = [tmp_path / "b.npy", str(tmp_path / "a.npy"), tmp_path / "b.npy"]
    means = stimuli.load_stimuli(paths, SPEC).mean((1, 2, 3, 4)) * 255
    np.testing.assert_allclose(means, [10, 20, 10], rtol=1e-5)


# Trees.


def test_find_clips(tmp_path):
    root = tree(tmp_path / "data", {"walk": 2, "run": 1})
    write_frames(root / "run" / "zframes", circle(2))
    (root / ".cache").mkdir()
    (root / "walk" / "README.md").write_text("about")
    clips = stimuli.find_clips(root)
    found = [(c.label, c.path.name) for c in clips]
    expected = [("run", "000.npz"), ("run", "zframes")]
    assert found == [*expected, ("walk", "000.npz"), ("walk", "001.npz")]
    assert [c.label for c in stimuli.find_clips(root / "walk")] == [None, None]
    assert stimuli.find_clips(root / "run" / "zframes") == [
        stimuli.Clip(root / "run" / "zframes")
    ]


def test_load_labelled(tmp_path):
    root = tree(tmp_path / "data", {"c0": 4, "c1": 4})
    videos, labels = stimuli.load_labelled(root, SPEC)
    assert videos.shape == (8, 4, 24, 24, 3) and labels == ["c0"] * 4 + ["c1"] * 4
    videos, labels = stimuli.load_labelled([root], SPEC, limit=4)
    assert labels == ["c0", "c0", "c1", "c1"]  # spread over the classes
    values = np.rint(videos[:, 0, 0, 0, 0] * 255)
    np.testing.assert_array_equal(values, [0, 2, 40, 42])
    assert len(stimuli.load_labelled(root, SPEC, limit=99)[1]) == 8
    flat = [root / "c1" / "000.npz", root]
    assert stimuli.load_labelled(flat, SPEC)[1] == [None] + ["c0"] * 4 + ["c1"] * 4


def test_class_names(tmp_path):
    root = tree(tmp_path / "train", {"walk": 1, "run": 1})
    more = tree(tmp_path / "more", {"walk": 1, "jump": 1})
    assert stimuli.class_names(root) == ("run", "walk")
    assert stimuli.class_names([root, more]) == ("jump", "run", "walk")


def test_read_tree(tmp_path):
    root = tree(tmp_path / "data", {"run": 3, "walk": 2})
    (root / "walk" / "tall").mkdir()
    write(root / "walk" / "tall.mp4", circle(7, 96, 50))
    (root / "walk" / "tall").rmdir()
    seen = []
    clips, labels, classes = stimuli.read_tree(
        root, 20, progress=lambda *counts: seen.append(counts)
    )
    assert classes == ("run", "walk") and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1])
    assert seen == [(i, 6) for i in range(1, 7)]
    assert [c.shape for c in clips[:5]] == [(10, 20, 27, 3)] * 5
    assert clips[5].shape == (7, 38, 20, 3) and clips[5].dtype == np.uint8
    assert [c[0, 0, 0, 0] for c in clips[:5]] == [0, 1, 2, 40, 41]


@pytest.mark.parametrize("shape", [(30, 44), (61, 24), (24, 24), (7, 9), (97, 300)])
def test_clips_are_resized_as_videos_are(tmp_path, shape):
    clip = np.random.default_rng(0).integers(0, 256, (7, *shape, 3), np.uint8)
    np.save(tmp_path / "x.npy", clip)
    reference = video.resize_and_crop(jnp.asarray(clip[::2], jnp.float32), SPEC.size)
    (ours,) = stimuli.load_stimuli(tmp_path / "x.npy", SPEC)
    assert ours.dtype == np.float32
    assert np.abs(ours * 255 - reference).max() < 0.01


def test_read_tree_resizes_as_the_models_do(tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (7, 30, 44, 3), np.uint8)
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "x.npy", clip)
    (small,), _, _ = stimuli.read_tree(tmp_path, 24)
    left = (small.shape[2] - 24) // 2
    reference = stimuli.load_stimuli(tmp_path / "a" / "x.npy", SPEC)[0] * 255
    ours = small[::2, :, left : left + 24].astype(float)
    assert np.abs(ours - reference).max() < 0.51


# Refusals.


def test_missing_unknown_and_empty(tmp_path):
    text = refusal(stimuli.load_stimuli, tmp_path / "no.mp4", SPEC)
    assert text.startswith("stimulus=") and "no.mp4" in text and "no such file" in text
    (tmp_path / "clip.xyz").write_text("x")
    text = refusal(stimuli.load_stimuli, tmp_path / "clip.xyz", SPEC)
    assert "clip.xyz" in text and ".mp4" in text and ".npz" in text
    (tmp_path / "empty").mkdir()
    text = refusal(stimuli.load_labelled, tmp_path / "empty", SPEC)
    assert "no clips" in text
    for name in ("empty.mp4", "empty.npz"):
        (tmp_path / name).write_bytes(b"")
        text = refusal(stimuli.load_stimuli, tmp_path / name, SPEC)
        assert name in text and "empty" in text
    assert "at least one" in refusal(stimuli.load_stimuli, [], SPEC)


@pytest.mark.parametrize("suffix", VIDEOS)
def test_text_with_the_name_of_a_video(tmp_path, suffix, capfd):
    path = tmp_path / f"text.{suffix}"
    path.write_text("This is no video.\n" * 40)
    text = refusal(stimuli.load_stimuli, path, SPEC)
    assert str(path) in text and "video" in text and " @ 0x" not in text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", VIDEOS)
def test_truncated_videos(tmp_path, suffix, capfd):
    whole = write(tmp_path / f"whole.{suffix}", circle(40)).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole[: len(whole) * 3 // 5])
    assert str(path) in refusal(stimuli.load_stimuli, path, SPEC)
    assert capfd.readouterr() == ("", "")


def test_truncated_mp4_with_its_index_in_front(tmp_path):
    arguments = {"fps": 25, "qp": 5, "ffmpeg_args": ["-movflags", "+faststart"]}
    circle(1)
    mediapy.write_video(tmp_path / "a.mp4", circle(40), **arguments)
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert "not a whole video" in refusal(stimuli.read_clip, tmp_path / "cut.mp4")


def test_video_without_pictures(tmp_path):
    import wave

    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 800, "NONE", ""))
        sound.writeframes(bytes(1600))
    (tmp_path / "sound.wav").rename(tmp_path / "sound.mp4")
    assert "sound.mp4" in refusal(stimuli.read_clip, tmp_path / "sound.mp4")


def test_bad_arrays(tmp_path):
    clip = np.zeros((4, 8, 8, 3), np.float32)
    infinite = clip.copy()
    infinite[1, 2, 3, 0] = np.inf
    cases = {
        "nan": (np.full_like(clip, np.nan), "non-finite"),
        "inf": (infinite, "non-finite"),
        "bytes": (clip + 200, "[0, 1]"),
        "negative": (clip - 1, "[0, 1]"),
        "wide": (clip.astype(np.int32) + 256, "0..255"),
        "bool": (clip > 0, "uint8"),
        "image": (clip[0], "(8, 8, 3)"),
        "batch": (clip[None], "(1, 4, 8, 8, 3)"),
        "none": (clip[:0], "(0, 8, 8, 3)"),
        "planes": (np.zeros((4, 3, 8, 8)), "(4, 3, 8, 8)"),
    }
    for name, (array, expected) in cases.items():
        np.save(tmp_path / f"{name}.npy", array)
        text = refusal(stimuli.load_stimuli, tmp_path / f"{name}.npy", SPEC)
        assert f"{name}.npy" in text and expected in text
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("no array")
    np.savez(tmp_path / "whole.npz", video=clip)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("pickle.npy", "nothing.npz", "text.npz", "cut.npz"):
        assert name in refusal(stimuli.load_stimuli, tmp_path / name, SPEC)


def test_bad_frames(tmp_path):
    folder = write_frames(tmp_path / "frames", circle(3))
    Image.new("RGB", (5, 7)).save(folder / "frame_3.png")
    text = refusal(stimuli.read_clip, folder)
    assert "frame_3.png is 5x7" in text and "64x48" in text
    (folder / "frame_3.png").write_text("no image")
    assert "frame_3.png is no image" in refusal(stimuli.read_clip, folder)
    whole = (folder / "frame_1.png").read_bytes()
    (folder / "frame_3.png").write_bytes(whole[: len(whole) // 2])
    assert "frame_3.png is no image" in refusal(stimuli.read_clip, folder)


def test_clips_too_large_for_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "long.mp4", circle())
    monkeypatch.setattr(stimuli, "_LARGEST", 1000)
    assert "trim the clip" in refusal(stimuli.read_clip, path)


def test_bad_trees(tmp_path):
    root = tree(tmp_path / "data", {"run": 1, "walk": 1})
    assert "folder of clips" in refusal(stimuli.read_clip, root)
    for function, arguments in [(stimuli.read_tree, (20,)), (stimuli.class_names, ())]:
        text = refusal(function, root / "run", *arguments)
        assert text.startswith("data=") and "class" in text and str(root) in text
    mixed = tree(tmp_path / "mixed", {"run": 1})
    np.save(mixed / "stray.npy", np.zeros((4, 8, 8, 3), np.uint8))
    assert "stray.npy': has no class" in refusal(stimuli.read_tree, mixed, 20)
    (root / "jump").mkdir()
    text = refusal(stimuli.read_tree, root, 20)
    assert "'jump' holds no clips" in text
    assert "limit=0" in refusal(stimuli.load_labelled, root, SPEC, limit=0)
    assert "short_side=0" in refusal(stimuli.read_tree, root, 0)


# TensorFlow Datasets.


def test_a_rendered_action():
    places = [f"actions:jumping jack/{seed}" for seed in (3, 3, 4)]
    (one, same, other), labels = stimuli.load_labelled(places, SPEC)
    assert labels == ["jumping jack"] * 3
    assert one.shape == (4, 24, 24, 3) and 0 <= one.min() and one.max() <= 1
    np.testing.assert_array_equal(one, same)
    assert rms(one, other) > 0.05
    assert np.abs(np.diff(one, axis=0)).max() > 0.1, "nothing moves"
    plain = stimuli.load_stimuli("actions:jumping jack", SPEC)
    np.testing.assert_array_equal(
        plain, stimuli.load_stimuli("actions:jumping jack/0", SPEC)
    )


def test_an_action_is_rendered_on_the_processor(monkeypatch):
    """In threads, beside one that uses the GPUs."""
    clip, devices = scenes.clip, []

    def heard(*args, **options):
        devices.append(jax.config.jax_default_device)
        return clip(*args, **options)

    monkeypatch.setattr(scenes, "clip", heard)
    stimuli.load_stimuli("actions:jumping jack/3", SPEC)
    assert [device.platform for device in devices] == ["cpu"]


def test_rendered_actions_that_are_none():
    text = refusal(stimuli.load_stimuli, "actions:jumping jak/3", SPEC)
    assert "stimulus='actions:jumping jak/3'" in text
    assert "did you mean jumping jack" in text
    for seed in ("three", "-1", "1.5"):
        text = refusal(stimuli.load_stimuli, f"actions:boxing/{seed}", SPEC)
        assert f"'{seed}' is no number" in text and "write boxing/7" in text


def test_tfds_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    text = refusal(stimuli.load_stimuli, "tfds:ucf101/test", SPEC)
    assert text.startswith("stimulus='tfds:ucf101/test'")
    assert "pip install 'leaps_jax[tfds]'" in text
    assert "tfds:NAME/SPLIT" in refusal(stimuli.load_stimuli, "tfds:ucf101", SPEC)


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
    clips, labels, classes = stimuli.read_tree(
        f"tfds:{name}/train", 30, data_dir=folder
    )
    assert classes == ("walk", "run") and by_content(clips) == [0, 20, 40, 60, 80, 100]
    for clip, label in zip(clips, labels, strict=True):
        i = len(clip) - 8
        np.testing.assert_array_equal(clip, tfds_clip("train", i))
        assert label == i % 2
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    videos = stimuli.load_stimuli(f"tfds:{name}/test", SPEC, data_dir=folder)
    assert videos.shape == (2, 4, 24, 24, 3)
    videos, labels = stimuli.load_labelled(
        f"tfds:{name}/train[:4]", SPEC, limit=3, data_dir=folder
    )
    assert videos.shape[0] == len(labels) == 3 and set(labels) <= {"walk", "run"}
    names = stimuli.class_names(f"tfds:{name}/test", data_dir=folder)
    assert names == ("walk", "run")


def test_tfds_refusals(data_dirs):
    folder = data_dirs["array_record"]

    def text(name, **kwargs):
        return refusal(stimuli.load_stimuli, name, SPEC, data_dir=folder, **kwargs)

    assert "did you mean train" in text("tfds:videos/trian")
    assert "'no_such_data'" in text("tfds:no_such_data/train")
    assert "'more'" in text("tfds:two_videos/train")
    assert "train[" in text("tfds:videos/train[:x]")
    assert "holds no clips" in text("tfds:videos/train[:0]")
    long = ModelSpec("long", frames=9, size=24, classes=("a",))
    short = refusal(stimuli.load_stimuli, "tfds:videos/test", long, data_dir=folder)
    assert "tfds:videos/test clip" in short and "8 frames" in short


def test_tfds_honours_its_environment(data_dirs):
    """TFDS reads TFDS_DATA_DIR when it is imported, so in a process of its own."""
    import os
    import subprocess
    import sys

    code = (
        "from leaps_jax.data import stimuli;"
        "print(len(stimuli.read_tree('tfds:videos/test', 30)[0]))"
    )
    environment = os.environ | {"TFDS_DATA_DIR": str(data_dirs["array_record"])}
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "2", result.stderr
