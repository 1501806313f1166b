"""metrics.jsonl of a run: a line per logged step, each term raw and weighted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leaps_jax import files, schemas
from leaps_jax.errors import UserError
from leaps_jax.runtime.engine import Snapshot
from leaps_jax.synthesis import Problem

_EVERY = 10  # steps between two lines


def log(path: Path, problem: Problem, snapshot: Snapshot) -> None:
    """Adds what is to tell of the steps of a snapshot."""
    files.append_json_lines(path, lines(problem, snapshot))


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, without those that are damaged; none without a file."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            one = schemas.parsed(path, line, schemas.Metrics, "leave it out")
        except UserError:  # cut short by a kill, for example
            continue
        found.append(one.model_dump(exclude_unset=True))
    return found


def keep(path: Path, step: int) -> None:
    """Drops the lines after `step`: their steps will be done again."""
    kept = [line for line in read(path) if line["step"] <= step]
    files.write(path, "".join(json.dumps(line) + "\n" for line in kept))


def means(line: dict[str, Any]) -> dict[str, float]:
    """The means over videos of a line, by name: "total", "raw/priming" and so on.

    >>> means({"step": 10, "total": [1.0, 3.0], "raw": {"priming": [2.0, 4.0]}})
    {'total': 2.0, 'raw/priming': 3.0}
    """
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, dict):
            found |= {f"{name}/{term}": float(np.mean(v)) for term, v in value.items()}
        elif isinstance(value, list):
            found[name] = float(np.mean(value))
    return found


def lines(problem: Problem, snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl for the steps of a snapshot."""
    weights = problem.objective.weights
    first = snapshot.step - len(snapshot.metrics["total"]) + 1
    for row, total in enumerate(snapshot.metrics["total"]):
        step = first + row
        if step % _EVERY and step != snapshot.step:
            continue
        raw = {name: snapshot.metrics[name][row] for name in weights}
        yield {
            "step": step,
            "total": _rounded(total),
            "confidence": _rounded(snapshot.metrics["confidence"][row]),
            "gradient": _rounded(snapshot.metrics["gradient"][row]),
            "raw": {name: _rounded(v) for name, v in raw.items()},
            "weighted": {n: _rounded(weights[n] * v) for n, v in raw.items()},
        }


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{v:.6g}") for v in values]
