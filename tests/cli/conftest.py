"""Models, clips and a finished run that the tests of commands share."""

import dataclasses
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from command import (
    CLASSES,
    GOOD,
    moving,
    save_clip,
    words_of,
)

from leaps_jax import Model
from leaps_jax.cli.main import main
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def small(name: str, classes=CLASSES, **fields) -> Model:
    module, spec = zoo.build(name, classes, **fields)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32),
        zoo.variable_shapes(module),
    )
    if statistics := variables.get("batch_stats"):  # no variance is negative
        variables["batch_stats"] = jax.tree.map(np.abs, statistics)
    return Model(module, variables, spec)


def damage(folder: Path, remove: str) -> None:
    """Leaves one tensor out of a checkpoint, as an interrupted copy might."""
    facts = json.loads((folder / "model.json").read_text())
    facts["shapes"][remove] = [1]
    (folder / "model.json").write_text(json.dumps(facts))


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A folder of models and clips."""
    return _filled(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module", autouse=True)
def compiled(kept):
    """Keeps compiled steps from test to test."""
    before = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", kept)
        patch.setenv("XDG_CONFIG_HOME", kept)  # the key is there
        jax.config.update("jax_compilation_cache_dir", kept)
        yield
    jax.config.update("jax_compilation_cache_dir", before)


def _filled(root: Path) -> Path:
    mediapy = pytest.importorskip("mediapy")
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    shape = {"frames": 4, "size": 32, "depth": 1, "width": 48, "stem": (4, 8)}
    model = small("timesformer_small", **shape)
    loading.save(model, root / "weights")
    loading.save(model, root / "torn")
    damage(root / "torn", "params/block0/missing")
    x3d = {"depths": (1, 1, 1, 1)}
    loading.save(small("x3d_xs_small", **x3d), root / "x3d")

    mediapy.set_ffmpeg(imageio_ffmpeg.get_ffmpeg_exe())
    mediapy.write_video(root / "clip.mp4", moving(0), fps=25, qp=10)
    content = (root / "clip.mp4").read_bytes()
    (root / "truncated.mp4").write_bytes(content[: len(content) // 2])
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("<html>not found</html>")
    (root / "notes.txt").write_text("not a clip")
    np.save(root / "nan.npy", np.full((12, 30, 40, 3), np.nan, np.float32))
    save_clip(root / "short.npz", moving(0, 3))
    for number, label in enumerate(CLASSES):
        for clip in range(2):
            video = moving(2 * number + clip)
            save_clip(root / "tree" / label / f"{clip}.npz", video)
    save_clip(root / "strangers" / "dive" / "0.npz", moving(9))
    walkers = small("timesformer_small", ("walking left", "walking right"), **shape)
    loading.save(walkers, root / "walkers")
    loading.save(_permuted(model, (2, 0, 1)), root / "permuted")
    (root / "no clips").mkdir()
    (root / "photos").mkdir()
    (root / "photos" / "cat.png").write_text("precious")
    (root / "stranger" / "src").mkdir(parents=True)
    (root / "stranger" / "run.json").write_text("{}")
    (root / "damaged").mkdir()
    (root / "damaged" / "run.json").write_text("[")
    evil = {"blobs": {"w": np.zeros(3), "x": RunsCode(root / "proof")}}
    (root / "evil.pkl").write_bytes(pickle.dumps(evil))
    return root


def _permuted(model: Model, order) -> Model:
    """The same model with its classes in another order."""
    params = dict(model.variables["params"])
    params["classifier"] = {
        name: leaf[..., list(order)] for name, leaf in params["classifier"].items()
    }
    classes = tuple(model.spec.classes[i] for i in order)
    spec = dataclasses.replace(model.spec, classes=classes)
    return dataclasses.replace(model, variables={"params": params}, spec=spec)


@pytest.fixture
def call(root, capsys):
    """Runs the command; words may hold `{root}` for the folder of inputs."""

    def run(*words):
        capsys.readouterr()
        try:
            code = main([str(word).format(root=root) for word in words])
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture(scope="module")
def finished(root, compiled):
    """One run from an mp4 and the words that made it, once for all tests."""
    words = [
        str(word).format(root=root)
        for word in words_of("synthesize", GOOD, out="{root}/finished")
    ]
    assert main(words) == 0
    return root / "finished", words
