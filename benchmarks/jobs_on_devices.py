"""A table of jobs on the devices of this machine: by one, by shards, by Ray.

    python benchmarks/jobs_on_devices.py --out jobs_on_devices --devices 2

Four models that come with the package have the same number of rows. Each way to do the
table gets a folder of its own: "one" uses one device, "shards" a process for each of
them, "ray" a worker for each. "killed" is "ray" again, but a worker is killed when a
third of the rows is done. Models are compiled in the first, "one". Prints the seconds
of each, the videos a second after the first batch, the share of time in which devices
had none, and how far videos are from those of "one". `--cpu --rows 6 --steps 2 --batch
2 --models vivit_small@robust` tries it out.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import leaps_jax as lj
from leaps_jax.actions import motions

MODELS = """slow_r50_tiny@robust timesformer_small@robust vivit_small@robust
 x3d_xs@actions""".split()


def write_table(path: Path, models: list[str], rows: int) -> None:
    """A table of so many rows of each model, and clips that take no time to decode."""
    spec = lj.load_model(models[0]).spec
    for place, name in enumerate(motions.CLASSES):
        (clip,) = lj.load_stimuli([f"actions:{name}/1"], spec)
        np.savez(path.parent / f"{place}.npz", video=np.uint8(clip * 255))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "stimulus", "label", "seed"])
        for model in models:
            for row in range(rows):
                place, seed = row % len(motions.CLASSES), row // len(motions.CLASSES)
                clip = path.parent / f"{place}.npz"
                writer.writerow([model, clip, motions.CLASSES[place], seed])


def start(
    table: Path, out: Path, device: int | None, options: argparse.Namespace, *more: str
) -> subprocess.Popen:
    """The command, on one device or on all."""
    words = ["synthesize", "--jobs", table, "--out", out, "--batch", options.batch]
    words += ["--steps", options.steps, "--short", "loop", *more]
    known = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if options.cpu:
        known |= {"JAX_PLATFORMS": "cpu"}
    elif device is not None:
        known |= {"CUDA_VISIBLE_DEVICES": str(device)}
    command = [sys.executable, "-m", "leaps_jax", *map(str, words)]
    with (out.parent / f"{out.name}.txt").open("a") as log:
        return subprocess.Popen(command, env=known, stdout=log, stderr=log)


def row_files(out: Path) -> list[Path]:
    """The files of finished rows."""
    return sorted((out / "rows").rglob("*.npz"))


def kill_a_worker(out: Path, rows: int, run: subprocess.Popen) -> None:
    """Kills one as soon as so many rows are done; prints when there are new ones."""
    while len(row_files(out)) < rows:
        if run.poll() is not None:
            raise SystemExit(f"{out}: over before a worker could be killed")
        time.sleep(0.2)
    found = subprocess.run(["pgrep", "-f", "^ray::Actor"], capture_output=True)
    killed = int(found.stdout.split()[0])
    os.kill(killed, signal.SIGKILL)
    print(f"killed worker {killed} of {found.stdout.split()}, {rows} rows done")


def told(name: str, out: Path, began: float, rows: int) -> str:
    """What came of a run, in a line."""
    files = row_files(out)
    names = [int(path.stem) for path in files]
    once = names == list(range(rows)) and not any((out / "parts").iterdir())
    records = [json.loads(p.read_text()) for p in sorted(out.glob("shard-*.json"))]
    ends = [path.stat().st_mtime for path in files]
    first, last = min(ends), max(ends)
    after = sum(end > first + 0.5 for end in ends) / max(last - first, 1e-9)
    idle = np.mean([record["idle_share"] for record in records])
    return (
        f"{name:7} {last - began:6.1f} s {after:7.2f} videos/s after the first batch"
        f" idle {idle:6.2%}, {'every row once' if once else f'ROWS: {names}'}"
    )


def same(one: Path, other: Path) -> str:
    """How many rows of another run are those of one, and the largest difference."""
    equal = largest = count = 0
    for path in row_files(one):
        with np.load(path) as a, np.load(other / path.relative_to(one)) as b:
            off = np.abs(a["videos"].astype(int) - b["videos"]).max()
        equal, largest, count = equal + (off == 0), max(largest, off), count + 1
    return f"{equal} of {count} rows equal, pixels off by {largest} of 255 at most"


def main() -> None:
    """Reads the arguments, and does the table in each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rows", type=int, default=368, help="of each model")
    parser.add_argument("--batch", type=int, default=23)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True)
    total = options.rows * len(options.models)
    write_table(out / "jobs.csv", options.models, options.rows)
    devices = range(options.devices)

    def run(name: str, processes: int, *more: str, kill: bool = False) -> None:
        began, folder = time.time(), out / name
        shards = [
            start(
                out / "jobs.csv",
                folder,
                device if processes > 1 or name == "one" else None,
                options,
                *(["--shard", f"{device + 1}/{processes}"] if processes > 1 else []),
                *more,
            )
            for device in devices[:processes]
        ]
        if kill:
            kill_a_worker(folder, total // 3, shards[0])
        codes = [shard.wait() for shard in shards]
        if any(codes):
            raise SystemExit(f"{name} failed: see {folder}.txt")
        print(told(name, folder, began, total), flush=True)
        if name != "one":
            print("       ", same(out / "one", folder), flush=True)

    run("one", 1)
    run("shards", options.devices)
    ray = ["--engine", "ray", "--workers", str(options.devices)]
    run("ray", 1, *ray)
    run("killed", 1, *ray, kill=True)


if __name__ == "__main__":
    main()
