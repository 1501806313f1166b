"""Commands that write something, and what counts of it, bit for bit."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from command import GOOD, words_of

from leaps_jax.models import timesformer

SMALL = {"depth": 1, "width": 16, "heads": 2}


def shrink(command: str) -> None:
    """Makes the network that `train` builds a small one."""
    if command == "train":
        timesformer.VARIANTS["timesformer_small"] |= SMALL


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


def names(out: Path) -> set[tuple[str, ...]]:
    """What is in a folder and its folders, but what a kill left half written."""
    found = [path.relative_to(out).parts for path in out.rglob("*")]
    return {path[:2] for path in found if not any(name[0] == "." for name in path)}
