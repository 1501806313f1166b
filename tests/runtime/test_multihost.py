"""Two processes end with the run of one: videos, metrics and files.

Real processes that meet by `jax.distributed`, with collectives by gloo, started with
the two lines of docs/large-runs.md. Three videos, so that one slot is padding, and a
verifier, whose moments are of all videos.
"""

import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from leaps_jax import Model, taps
from leaps_jax.cli.main import main
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading

CLASSES = ("bend", "jack", "run")
REPOSITORY = Path(__file__).parents[2]
LARGE_RUNS = (REPOSITORY / "docs" / "large-runs.md").read_text()
QUICK = ["--steps", "20", "--set", "steps_per_call=2", "--preview-every", "0"]


def network(seed: int) -> Model:
    """Its matrices are small: sharper ones magnify rounding errors."""
    module, spec = zoo.build(
        "timesformer_small", CLASSES, frames=4, size=28, patch=14, stem=(), depth=1
    )
    variables = jax.jit(module.init)(jax.random.key(seed), np.zeros((1, 4, 28, 28, 3)))
    small = jax.tree.map(
        lambda x: x * min(1.0, 0.02 / x.std()) if x.ndim == 2 else x, variables
    )
    return Model(module, small, spec)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("processes")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / "clips" / name).mkdir(parents=True)
        clip = rng.integers(0, 255, (12, 28, 28, 3)).astype(np.uint8)
        np.savez(root / "clips" / name / "0.npz", video=clip)
    loading.save(network(0), root / "weights")
    verifier = network(1)
    moments = taps.estimate_moments(verifier, rng.random((4, 4, 28, 28, 3), np.float32))
    loading.save(
        Model(verifier.module, verifier.variables, verifier.spec, moments=moments),
        root / "verifier",
    )
    return root


def lines_of_readme(out: str) -> list[list[str]]:
    """The words of its two lines, with the models and the output of these tests."""
    block = re.search(r"```bash\n([^`]*--coordinator[^`]*)```", LARGE_RUNS)
    assert block
    lines = block[1].replace("\\\n", " ").strip().splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    own = {"--model": "timesformer_small@weights/", "--out": out}
    own["--verifier"] = "timesformer_small@verifier/"
    for words in split:
        for option, value in own.items():
            words[words.index(option) + 1] = value
    return split


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def launch(root: Path, words: list[str]) -> subprocess.Popen:
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "leaps_jax", *words],
        cwd=root,
        env=os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(root / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(
    root: Path, out: str, *more: str, second: Sequence[str] = ()
) -> list[subprocess.Popen]:
    """The lines of docs/large-runs.md, each a process, with another output."""
    port, started = free_port(), []
    for command, *words in lines_of_readme(out):
        assert command == "leaps-jax"
        words = [re.sub(r"^localhost:\d+$", f"localhost:{port}", w) for w in words]
        started.append(
            launch(root, [*words, *QUICK, *more, *(second if started else ())])
        )
    return started


def start_alone(root: Path, out: str, *more: str) -> subprocess.Popen:
    words = lines_of_readme(out)[0][1:]
    return launch(root, [*words[: words.index("--coordinator")], *QUICK, *more])


def lines(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(one: Path, two: Path) -> None:
    a, b = np.load(one / "videos.npz"), np.load(two / "videos.npz")
    assert a["videos"].shape == b["videos"].shape == (3, 4, 28, 28, 3)
    assert np.abs(a["videos"] - b["videos"]).max() < 1e-4
    np.testing.assert_array_equal(a["stimuli"], b["stimuli"])
    np.testing.assert_array_equal(a["labels"], b["labels"])
    assert len(lines(one)) == len(lines(two))
    for line, other in zip(lines(one), lines(two), strict=True):
        assert line["step"] == other["step"]
        for name, values in line["raw"].items():
            np.testing.assert_allclose(values, other["raw"][name], rtol=1e-3, atol=1e-5)
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, two)]
    assert [record["status"] for record in records] == ["finished"] * 2
    assert records[0]["identity"] == records[1]["identity"]
    for role, verdict in records[0]["judges"].items():
        assert records[1]["judges"][role]["seen"] == verdict["seen"]
    files = [
        {str(path.relative_to(folder)) for path in folder.rglob("*")}
        for folder in (one, two)
    ]
    files = [{f for f in found if not f.startswith("state/")} for found in files]
    assert files[0] == files[1]


@pytest.fixture(scope="module")
def one(root) -> Path:
    process = start_alone(root, "one")
    printed = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    return root / "one"


def test_two_processes_end_as_one(root, one):
    has_writer = importlib.util.find_spec("tensorboard") is not None
    more = ["--tensorboard", "events"] if has_writer else []
    started = start(root, "two", *more)
    printed = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    assert len(list(root.glob("events/*"))) == has_writer, "the first writes alone"
    assert "diversity" in lines(root / "two")[0]["raw"]
    assert_same(one, root / "two")
    assert "synthesize 20/20" in printed[0][1] and "results:" in printed[0][0]
    assert "synthesize 20/20" not in printed[1][1] and "results:" not in printed[1][0]


def test_one_process_goes_on_where_two_were_killed(root, one):
    """The second is killed; the first does not wait for it."""
    folder = root / "killed"
    started = start(root, "killed", "--save-every", "0")
    while len(lines(folder)) < 2 and all(p.poll() is None for p in started):
        time.sleep(0.02)
    started[1].send_signal(signal.SIGKILL)
    for process in started:
        process.communicate(timeout=120)
    assert [process.returncode == 0 for process in started] == [False, False]
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "running" and record["processes"] == 2
    again = start_alone(root, "killed")
    printed = again.communicate(timeout=120)
    assert again.returncode == 0 and "resuming killed at step" in printed[1], printed
    assert_same(one, folder)


def test_a_mistake_of_one_process_ends_all(root):
    """The others say whose it was, and none waits."""
    started = start(root, "mistake", second=["--judge", "timesformer_small@nowhere"])
    printed = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [2, 2], printed
    assert "error: process 1: judge=" in printed[0][1]
    assert not (root / "mistake").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes", "2"], "processes=2: needs --coordinator HOST:PORT"),
        (["--coordinator", "host:1"], "processes: missing"),
        (["--coordinator", "auto", "--process", "1"], "process=1: is found out"),
        (
            ["--coordinator", "host:1", "--processes", "2", "--process", "2"],
            "process=2: must be from 0 to 1",
        ),
        (
            ["--coordinator", "host", "--processes", "2", "--process", "0"],
            "coordinator='host': must be HOST:PORT or auto",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(words, said, capsys):
    common = ["synthesize", "--model", "x3d_xs@actions", "--out", "nowhere"]
    assert main([*common, *words]) == 2
    assert said in capsys.readouterr().err
