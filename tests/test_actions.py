"""The synthetic actions are what their names and their ground truth say."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax.actions import dataset, gallery, motions, scenes
from leaps_jax.actions.figure import draw_body, draw_style
from leaps_jax.actions.motions import CLASSES
from leaps_jax.actions.poses import Clock
from leaps_jax.actions.skeleton import JOINTS
from leaps_jax.cli.main import main
from leaps_jax.data.clips import load_labelled, read_clip, read_tree
from leaps_jax.data.tfds import import_tfds
from leaps_jax.model import ModelSpec
from leaps_jax.runs import contact_sheet

FEET = [JOINTS.index(f"{s} {p}") for s in ("left", "right") for p in ("ankle", "toe")]
SOLES = np.array([0.07, 0.04, 0.07, 0.04])  # radii of FEET
MIRROR = [
    JOINTS.index(
        name.replace("left", "L").replace("right", "left").replace("L", "right")
    )
    for name in JOINTS
]
PAIRS = sorted({tuple(sorted(pair)) for pair in motions.REVERSED.items()})
MIRRORED = sorted({tuple(sorted(pair)) for pair in motions.MIRRORED.items()})


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """The command keeps compiled steps in the home folder; here it does not."""
    before = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        kept = str(tmp_path_factory.mktemp("compiled"))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", kept)
        patch.setenv("XDG_CONFIG_HOME", kept)  # the key is there
        yield
    jax.config.update("jax_compilation_cache_dir", before)


@functools.cache
def clip(name, seed=0, frames=4, fps=3.0):
    """One size and, mostly, one length: each other shape is compiled anew."""
    key = jax.random.key(seed)
    scene = scenes.render(key, CLASSES.index(name), frames=frames, size=112, fps=fps)
    return jax.tree.map(np.asarray, scene)


@functools.cache
def performances(count=100, frames=16):
    """Every class by `count` people, without pixels: (classes, people, t, ...)."""
    clock = Clock(jnp.arange(frames) / 15, jnp.array((frames - 1) / 15))

    def one(label, key):
        keys = jax.random.split(key, 3)
        body, style = draw_body(keys[0]), draw_style(keys[1])
        return motions.perform(label, body, style, jax.random.uniform(keys[2]), clock)

    people = jax.vmap(one, (None, 0))
    everything = jax.jit(jax.vmap(people, (0, None)))
    keys = jax.random.split(jax.random.key(0), count)
    action = everything(jnp.arange(len(CLASSES)), keys)
    return jax.tree.map(np.asarray, action)


# Scenes.


@pytest.mark.parametrize("name", CLASSES)
def test_a_clip_of_every_class(name):
    scene = clip(name)
    assert scene.label == CLASSES.index(name)
    assert scene.video.shape == (4, 112, 112, 3) and np.isfinite(scene.video).all()
    assert (
        scene.video.min() >= 0 and scene.video.max() <= 1 and scene.video.std() > 0.02
    )
    assert np.abs(np.diff(scene.video, axis=0)).max() > 0.1
    assert scene.joints.shape == (4, len(JOINTS), 2)
    assert scene.flow.shape == (3, 112, 112, 2) and scene.figure.shape == (4, 112, 112)
    assert scene.figure.min() >= 0 and scene.figure.max() <= 1 + 1e-5


def test_the_key_decides_everything():
    one, again, other = (clip.__wrapped__("boxing", seed) for seed in (7, 7, 8))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    for field in ("video", "joints", "joints_3d", "figure"):
        assert np.abs(getattr(one, field) - getattr(other, field)).max() > 0.1, field


@pytest.mark.parametrize("name", ["running left", "boxing", "spinning"])
def test_a_stride_is_a_rate(name):
    """Every other frame at 30 a second is what 15 a second show, but for the grain."""
    fast, slow = clip(name, frames=7, fps=30.0), clip(name, frames=4, fps=15.0)
    np.testing.assert_allclose(fast.joints_3d[::2], slow.joints_3d, atol=1e-5)
    np.testing.assert_allclose(fast.joints[::2], slow.joints, atol=1e-3)
    np.testing.assert_allclose(fast.figure[::2], slow.figure, atol=1e-2)
    assert np.abs(fast.video[::2] - slow.video).mean() < 0.025
    assert np.abs(fast.joints[::2] - clip(name).joints).max() > 1


@pytest.fixture(scope="module")
def sharp():
    """Clips of every class at the size of the small models."""
    return [clip(name, seed, fps=15.0) for seed, name in enumerate(CLASSES)]


def at_joints(scene, field, frames):
    """A map's values at the joints in the picture, and which (t, joint) they are."""
    place = np.floor(scene.joints[:frames]).astype(int)
    inside = ((place >= 0) & (place < 112)).all(-1)
    t, joint = np.nonzero(inside)
    x, y = place[t, joint].T
    return field[t, y, x], t, joint


def test_the_figure_covers_its_joints(sharp):
    shares = [at_joints(scene, scene.figure, 4)[0] for scene in sharp]
    # a pole or a thing that drifts past may hide some
    assert np.mean(np.concatenate(shares) > 0.9) > 0.9
    assert all(0.005 < scene.figure.mean() < 0.3 for scene in sharp)


def test_up_is_up_and_right_is_right():
    head, ankle = JOINTS.index("head"), JOINTS.index("left ankle")
    for name, way in {"walking left": -1, "walking right": 1}.items():
        joints = clip(name).joints
        assert (joints[:, head, 1] < joints[:, ankle, 1] - 20).all()
        assert way * (joints[-1, head, 0] - joints[0, head, 0]) > 20


def test_the_flow_is_how_the_joints_move(sharp):
    errors, moves = [], []
    for scene in sharp:
        flow, t, joint = at_joints(scene, scene.flow, 3)
        moved = (scene.joints[1:] - scene.joints[:-1])[t, joint]
        quick = np.linalg.norm(moved, axis=-1) > 2
        errors.append(np.linalg.norm(flow - moved, axis=-1)[quick])
        moves.append(np.linalg.norm(moved, axis=-1)[quick])
        assert (scene.flow[scene.figure[:3] == 0] == 0).all()
    errors, moves = np.concatenate(errors), np.concatenate(moves)
    assert len(moves) > 50
    assert np.median(errors) < 0.5 < 2 < np.median(moves)


# Motions.


@pytest.mark.parametrize("forward, backward", PAIRS)
def test_a_reversed_pair_is_one_motion(forward, backward):
    """One person's clips of the two are each other's, played backwards."""
    one, other = clip(forward).joints_3d, clip(backward).joints_3d
    np.testing.assert_allclose(one, other[::-1], atol=1e-5)
    assert np.abs(one - other).max() > 0.2  # and not the same either way
    balls = performances().balls[[CLASSES.index(n) for n in (forward, backward)]]
    np.testing.assert_allclose(balls[0], balls[1][:, :, ::-1], atol=1e-4)


@pytest.mark.parametrize("left, right", MIRRORED)
def test_a_mirrored_pair_is_one_motion(left, right):
    """A mirror turns a person of the one class into a person of the other.

    The other person shows the other side, and is elsewhere in the cycle: half of it
    where legs exchange, at any place where one hand waves. `draw_style` draws sides
    and phases evenly, so the mirrored class has the distribution of the other.
    """
    body = draw_body(jax.random.key(1))
    style = draw_style(jax.random.key(2))
    clock = Clock(jnp.arange(6) / 5, jnp.array(1.0))
    perform = jax.jit(motions.perform)
    for side in (-1.0, 1.0):
        one = style._replace(side=jnp.array(side))
        other = one._replace(side=-one.side)
        if "waving" in left:  # the right hand waves `route` of a cycle ahead
            other = other._replace(phase=(one.phase - one.route) % 1)
        else:
            other = other._replace(phase=(one.phase + 0.5) % 1)
        seen, expected = (
            perform(CLASSES.index(name), body, style, 0.3, clock).joints
            for name, style in [(left, one), (right, other)]
        )
        mirrored = (seen * jnp.array([-1.0, 1.0, 1.0]))[:, jnp.array(MIRROR)]
        np.testing.assert_allclose(mirrored, expected, atol=1e-4)
    styles = jax.vmap(draw_style)(jax.random.split(jax.random.key(3), 400))
    assert abs(np.mean(styles.side)) < 0.2
    assert np.histogram(styles.phase, 4, (0, 1))[0].min() > 60


def test_every_class_moves():
    joints = performances().joints
    moved = np.linalg.norm(joints - joints[:, :, :1], axis=-1).max((2, 3))
    for name, least in zip(CLASSES, moved.min(1), strict=True):
        assert least > 0.1, name  # metres
    left, right = (
        np.sign(
            np.diff(joints[CLASSES.index(f"walking {way}"), :, [0, -1], 0, 0], axis=0)
        )
        for way in ("left", "right")
    )
    assert (left == -1).all() and (right == 1).all()


def test_a_still_is_a_frame_of_the_clip():
    options = {"frames": 4, "size": 112, "fps": 3.0}
    chosen = set()
    for seed in range(4):
        key, label = jax.random.key(seed), CLASSES.index("jumping jack")
        video, joints = scenes.clip(key, label, **options)
        frozen, held = scenes.still(key, label, **options)
        assert frozen.shape == video.shape and held.shape == joints.shape
        np.testing.assert_array_equal(frozen, jnp.broadcast_to(frozen[0], video.shape))
        (at,) = [t for t in range(4) if (video[t] == frozen[0]).all()]
        np.testing.assert_array_equal(held, jnp.broadcast_to(joints[at], joints.shape))
        chosen.add(at)
    assert len(chosen) > 1


def test_feet_are_on_the_floor_or_above_it():
    joints = performances().joints
    soles = (joints[..., FEET, 1] - SOLES).min(-1)
    assert soles.min() > -1e-4 and joints[..., 1].min() > 0
    leaves = {"running left", "running right", "jumping jack", "hopping"}
    for name, heights in zip(CLASSES, soles, strict=True):
        assert (heights.max() > 0.01) == (name in leaves), name


def test_limbs_keep_their_lengths():
    joints = performances().joints
    for a, b in [("left hip", "left knee"), ("right elbow", "right hand")]:
        bone = joints[..., JOINTS.index(a), :] - joints[..., JOINTS.index(b), :]
        length = np.linalg.norm(bone, axis=-1)
        np.testing.assert_allclose(length, length[..., :1] * np.ones(16), rtol=1e-3)


# Pictures and files.

SMALL = ["--frames", "3", "--size", "28"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("imageio_ffmpeg")
    out = tmp_path_factory.mktemp("actions") / "out"
    assert main(["actions", "--out", str(out), "--clips", "2", *SMALL]) == 0
    return out


def call(capsys, *words):
    capsys.readouterr()
    code = main(["actions", *map(str, words)])
    return code, *capsys.readouterr()


def refusal(capsys, *words):
    code, out, err = call(capsys, *words)
    assert code == 2 and not out and len(err.splitlines()) == 1
    return err


def test_strips_and_captions():
    videos = np.zeros((3, 5, 50, 50, 3), np.uint8)
    videos += np.arange(5, dtype=np.uint8)[:, None, None, None] * 50
    sheet = contact_sheet.strips(["a", "b", "a long name"], videos, frames=3)
    assert sheet.shape[0] == 3 * 100 + 2 * 2
    row = sheet[50, -3 * 102 + 2 :, 0]
    assert [row[50], row[152], row[254]] == [0, 100, 200]
    labels = sheet[:, : -3 * 102] < 128
    assert labels[:100].any() and labels[-100:].sum() > 3 * labels[:100].sum()
    moving = contact_sheet.captioned(["a", "b", "a" * 99], videos, columns=2)
    assert moving.shape == (5, 2 * (200 + 24) + 4, 404, 3)
    assert (moving[:, 100, 100, 0] == np.arange(5) * 50).all()


def test_the_folder_and_its_clips(folder):
    from PIL import Image

    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    clips = {f"clips/{name}/00{i}.mp4" for name in CLASSES for i in (0, 1)}
    assert names == {"sheet.png", "sheet.mp4"} | clips
    with Image.open(folder / "sheet.png") as image:
        assert image.height == len(CLASSES) * (112 + 2) - 2 and image.width > 6 * 112
    assert read_clip(folder / "sheet.mp4").shape[0] % 6 == 0
    spec = ModelSpec("any", frames=3, size=28, stride=2, classes=CLASSES)
    videos, labels = load_labelled(folder / "clips", spec)
    assert labels == sorted([*CLASSES, *CLASSES])
    drawn = gallery.draw(gallery.Settings(3, 28), "files", CLASSES.index("bending"), 1)
    bending = videos[labels.index("bending") + 1]
    assert np.abs(bending - drawn.video[::2] / 255).mean() < 0.05
    assert np.abs(bending - videos[0]).mean() > 0.05


def test_overwrite_replaces_what_it_wrote_alone(folder, capsys):
    err = refusal(capsys, "--out", folder, *SMALL)
    assert "exists" in err and "--overwrite" in err
    assert call(capsys, "--out", folder, *SMALL, "--overwrite")[0] == 0
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert files == {"sheet.png", "sheet.mp4"}
    (folder / "clips" / "waving left hand" / "mine.mp4").touch()
    err = refusal(capsys, "--out", folder, *SMALL, "--overwrite")
    assert "no contact sheet" in err and "mine.mp4" in err and "choose another" in err


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], "out: missing"),
        (["--out", "{root}/notes.txt"], "is a file"),
        (["--out", "{root}/notes.txt/out"], "notes.txt is a file"),
        (["--out", "{root}"], "it holds notes.txt"),
        (["--clips", "-1"], "clips=-1: must not be negative"),
        (["--frames", "1"], "frames=1: must be at least 2"),
        (["--size", "8"], "size=8: must be at least 16"),
        (["--stride", "0"], "stride=0: must be at least 1"),
        (["--seed", "-1"], "seed=-1: must be from 0"),
    ],
)
def test_refusals(tmp_path, capsys, words, expected):
    (tmp_path / "notes.txt").write_text("precious")
    if words and "--out" not in words:
        words = ["--out", "{root}/out", *words]
    assert expected in refusal(capsys, *(w.format(root=tmp_path) for w in words))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_without_ffmpeg_there_is_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert "needs imageio_ffmpeg" in refusal(capsys, "--out", tmp_path, "--clips", 1)
    code, out, err = call(capsys, "--out", tmp_path, *SMALL)
    assert code == 0 and "sheet.png" in out
    (line,) = [line for line in err.splitlines() if not re.match(r"render \d", line)]
    assert "no sheet.mp4" in line and "pip install" in line
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_collections_differ():
    settings = gallery.Settings(3, 28)
    drawn = [gallery.draw(settings, c, 0, 0).video for c in gallery.COLLECTIONS]
    drawn += [
        gallery.draw(settings, "train", *which).video for which in [(1, 0), (0, 1)]
    ]
    for i, video in enumerate(drawn):
        assert all(np.abs(video - v.astype(int)).mean() > 5 for v in drawn[:i])


def test_a_stride_counts_in_frames_of_a_thirtieth():
    settings, label = gallery.Settings(3, 28, stride=2), CLASSES.index("boxing")
    source = gallery.draw(settings, "test", label, 3)
    key = gallery.key_of(settings.seed, "test", label, 3)
    seen = scenes.render(key, label, frames=4, size=112, fps=15.0).joints_3d
    np.testing.assert_allclose(source.joints_3d[::2], seen[:3], atol=1e-5)


# TensorFlow Datasets.


def test_the_data_set_needs_tfds(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert "pip install 'leaps_jax[tfds]'" in refusal(capsys, "--tfds")


def test_default_counts():
    clips = {split: 23 * n for split, n in dataset.counts().items()}
    assert clips == {"train": 2300, "test": 460} and dataset.total() == 2760


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    pytest.importorskip("tensorflow")
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    dataset.write(gallery.Settings(3, 28, seed=5), clips=2, data_dir=folder)
    return folder


NAME = "synthetic_actions/2_clips_3x2_28px_seed5"
TINY = ["--tfds", "--clips", "2", "--seed", "5", *SMALL]


def test_the_data_set(tmp_path, capsys):
    data_dir = tmp_path / "tfds"
    code, out, err = call(capsys, *TINY, "--data-dir", data_dir)
    assert code == 0 and f"--data tfds:{NAME}/train --data-dir {data_dir}" in out
    assert all(line.startswith("render ") for line in err.splitlines())
    clips, labels, classes = read_tree(f"tfds:{NAME}/train", 28, data_dir=data_dir)
    assert classes == CLASSES and np.bincount(labels).tolist() == [2] * len(CLASSES)
    assert {c.shape for c in clips} == {(6, 28, 28, 3)}
    assert len(read_tree(f"tfds:{NAME}/test", 28, data_dir=data_dir)[0]) == 23
    tfds = import_tfds()
    examples = tfds.data_source(NAME, split="test", data_dir=data_dir)
    for example in [examples[0], examples[7]]:
        split, name, number = example["id"].decode().split("/")
        assert split == "test" and example["seed"] == 5
        settings = gallery.Settings(3, 28, seed=int(example["seed"]))
        drawn = gallery.draw(settings, split, CLASSES.index(name), int(number))
        assert example["label"] == drawn.label
        np.testing.assert_array_equal(example["joints"], drawn.joints)
        difference = np.stack(example["video"]).astype(int) - drawn.video
        assert np.abs(difference).mean() < 6  # JPEG


def test_the_data_set_is_replaced_on_demand(data_dir, capsys):
    words = [*TINY, "--data-dir", data_dir]
    (written,) = [p for p in data_dir.rglob("*") if "-test." in p.name]
    before = written.read_bytes(), written.stat().st_mtime_ns
    err = refusal(capsys, *words)
    assert "exists" in err and "--overwrite" in err
    assert call(capsys, *words, "--overwrite")[0] == 0
    after = written.read_bytes(), written.stat().st_mtime_ns
    assert before[0] == after[0] and before[1] != after[1]


def test_a_model_trains_on_the_data_set(data_dir, tmp_path, capsys):
    words = ["train", "--model", "timesformer_small", "--data", f"tfds:{NAME}/train"]
    words += ["--eval-data", f"tfds:{NAME}/test", "--data-dir", str(data_dir)]
    words += ["--out", str(tmp_path / "weights"), "--steps", "2", "--evaluations", "1"]
    words += ["--frames", "2", "--size", "16", "--batch", str(jax.device_count())]
    assert main(words) == 0
    assert "46 clips of 23 classes" in capsys.readouterr().err
