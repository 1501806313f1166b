"""Commands that are killed at any moment: the same command ends as if it never was."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from command import GOOD, words_of

MOMENTS = 20
PROGRAM = """
import sys
from leaps_jax.cli.main import main
from leaps_jax.models import timesformer
if sys.argv[1] == "train":
    small = {"depth": 1, "width": 16, "heads": 2}
    timesformer.VARIANTS["timesformer_small"] |= small
sys.exit(main(sys.argv[1:]))
"""


def words(root: Path, command: str, given: dict[str, Any]) -> list[str]:
    return [str(word).format(root=root) for word in words_of(command, given)]


def synthesis(root: Path, out: Path) -> list[str]:
    given = {"out": out, "steps": 20, "save_every": 0, "preview_every": 4}
    return words(root, "synthesize", GOOD | given | {"set": "steps_per_call=2"})


def jobs(root: Path, out: Path) -> list[str]:
    table = root / "killed.csv"
    row = f"timesformer_small@{root}/weights,{root}/clip.mp4,jack,"
    rows = "".join(f"{row}{1 + number % 3},{number}\n" for number in range(24))
    table.write_text("model,stimulus,label,copies,seed\n" + rows)
    given = {"jobs": table, "out": out, "steps": 4, "batch": 2}
    return words(root, "synthesize", given)


def training(root: Path, out: Path) -> list[str]:
    given = {"model": "timesformer_small", "data": "{root}/tree", "out": out}
    given |= {"frames": 2, "size": 16, "batch": 2, "save_every": 0}
    return words(root, "train", given | {"steps": 6, "evaluations": 6})


def evaluation(root: Path, out: Path) -> list[str]:
    judges = ["--judges", GOOD["model"], "timesformer_small@{root}/permuted"]
    given = ["evaluate", root / "finished", *judges, "--out", out / "report.json"]
    return [str(word).format(root=root) for word in given]


def arrays(path: Path) -> dict[str, bytes]:
    with np.load(path) as file:
        return {name: file[name].tobytes() for name in file}


def of_synthesis(out: Path) -> dict[str, Any]:
    record = json.loads((out / "run.json").read_text())
    kept = {name: record[name] for name in ("status", "step", "final", "judges")}
    return kept | {
        "videos": arrays(out / "videos.npz"),
        "metrics": (out / "metrics.jsonl").read_text(),
    }


def of_jobs(out: Path) -> dict[str, Any]:
    found = {path.name: path for path in out.glob("rows/*/*.npz")}
    assert not os.listdir(out / "parts")
    return {name: arrays(path) for name, path in sorted(found.items())}


def of_training(out: Path) -> dict[str, Any]:
    facts = json.loads((out / "model.json").read_text())
    extra = {key: facts["extra"][key] for key in ("steps", "status", "accuracy")}
    return extra | {"digests": facts["digests"], "moments": arrays(out / "moments.npz")}


def of_evaluation(out: Path) -> dict[str, Any]:
    page = (out / "report.html").read_text()
    return {
        "report": json.loads((out / "report.json").read_text()),
        # drawings have names at random
        "page": re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL),
    }


class Work(NamedTuple):
    """A command, and what counts of its result.

    Attributes:
      words: `(root, out) -> words`.
      result: what two runs of it must have in common, bit for bit.
    """

    words: Callable[[Path, Path], list[str]]
    result: Callable[[Path], dict[str, Any]]


WORK = {
    "synthesize": Work(synthesis, of_synthesis),
    "jobs": Work(jobs, of_jobs),
    "train": Work(training, of_training),
    "evaluate": Work(evaluation, of_evaluation),
}


def start(words: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def names(out: Path) -> set[tuple[str, ...]]:
    """What is in a folder and its folders, but what a kill left half written."""
    found = [path.relative_to(out).parts for path in out.rglob("*")]
    return {path[:2] for path in found if not any(name[0] == "." for name in path)}


@pytest.mark.heavy
@pytest.mark.parametrize("command", WORK)
def test_killed_at_any_moment(root, finished, tmp_path, command):
    """A moment is a share of the time that all of it takes; imports come first."""
    work, out = WORK[command], tmp_path / "whole"
    took = 0.0
    for _ in range(2):  # the second finds its programs compiled
        out, began = out.with_name(f"{out.name}+"), time.monotonic()
        process = start(work.words(root, out))
        said = process.stderr.read()
        assert process.wait() == 0, said
        took = time.monotonic() - began
    whole, files = work.result(out), names(out)

    out, killed = tmp_path / "killed", 0
    for share in np.random.default_rng(0).uniform(0.3, 1, MOMENTS):
        process = start(work.words(root, out))
        try:
            process.wait(share * took)
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        said = process.stderr.read()
        assert process.wait() in (0, -9), said
        if process.returncode == 0:
            assert (work.result(out), names(out)) == (whole, files)
            out = out.with_name(f"{out.name}+")
    print(f"{command}: killed {killed} times, of {took:.1f} s each")
    assert killed >= MOMENTS // 2
    process = start(work.words(root, out))
    said = process.stderr.read()
    assert process.wait() == 0, said
    assert (work.result(out), names(out)) == (whole, files)
