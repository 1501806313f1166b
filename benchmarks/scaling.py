"""Many devices against one: the time of a step, and the videos.

    python benchmarks/scaling.py slow_r50:8 x3d_xs:32:182
    python benchmarks/scaling.py x3d_xs_small:1 --device cpu --steps 2

Each argument is MODEL:BATCH[:SIZE]. `leaps-jax bench` times the step of that batch on
one device, and of as many such batches on all of them: each device has the same work.
Then `leaps-jax synthesize` makes a video a device, on one device, on all, and in as
many processes of one device each, all at once, and how far pixels differ is printed.
Every measurement of time is a process of its own, alone. On a CPU, whose devices share
the cores, only the videos tell anything.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# In full float32, few steps and without a ReLU: rounding errors grow from step to step,
# and at once where a unit flips.
STEPS = "3"
SYNTHESIS = """synthesize --label clapping --preview-every 0 --dtype float32
 --model timesformer_small@actions --verifier vivit_small@actions
""".split()


def environment(device: str, numbers: range) -> dict[str, str]:
    """In which a process has the devices with these numbers."""
    known = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    if device == "cpu":
        flag = f"--xla_force_host_platform_device_count={len(numbers)}"
        return known | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    known["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # not all of a GPU for one
    return known | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, numbers))}


def start(words: list[str], where: dict[str, str]) -> subprocess.Popen:
    """Starts the command `leaps-jax` with arguments."""
    command = [sys.executable, "-m", "leaps_jax", *words]
    return subprocess.Popen(command, env=where, stdout=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen) -> str:
    """What the first one printed last."""
    printed = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes)
    return printed[0].splitlines()[-1]


def time_step(
    name: str, size: list[str], batch: int, device: str, count: int, steps: str
) -> dict:
    """What `leaps-jax bench` prints of a step on so many devices."""
    words = ["bench", "--model", name, "--batch", str(batch), "--steps", steps]
    words += ["--parametrization", "pixels"]
    words += ["--size", *size] if size else []
    words += ["--verifier", "x3d_xs", "--verifier-size", "182", "--json"]
    where = environment(device, range(count))
    where.pop("JAX_DEFAULT_MATMUL_PRECISION")
    print(line := finish(start(words, where)), flush=True)
    return json.loads(line)


def compare_videos(device: str, count: int) -> list[str]:
    """How far videos of many devices and processes are from those of one."""
    stimuli = [f"actions:clapping/{i}" for i in range(count)]
    words = [*SYNTHESIS, "--stimulus", *stimuli, "--steps", STEPS, "--out"]
    with socket.socket() as server:
        server.bind(("localhost", 0))
        meeting = ["--coordinator", f"localhost:{server.getsockname()[1]}"]
    meeting += ["--processes", str(count), "--process"]
    lines = []
    with tempfile.TemporaryDirectory() as folder:

        def videos(out: str) -> np.ndarray:
            return np.load(Path(folder, out, "videos.npz"))["videos"]

        def words_for(out: str) -> list[str]:
            return [*words, str(Path(folder, out))]

        runs = [(words_for("one"), range(1)), (words_for("all"), range(count))]
        runs += [
            ([*words_for("processes"), *meeting, str(i)], range(i, i + 1))
            for i in range(count)
        ]
        finish(*(start(of, environment(device, numbers)) for of, numbers in runs))
        for out in ("all", "processes"):
            off = np.abs(videos(out) - videos("one"))
            lines.append(
                f"{out}: pixels off by {off.max():.1e} at most, {off.mean():.1e} on"
                f" average, from those of one device after {STEPS} steps"
            )
    return lines


def main() -> None:
    """Reads the arguments, measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL:BATCH[:SIZE]")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--devices", type=int, default=2, metavar="N")
    parser.add_argument("--steps", default="20", help="of one call of bench")
    options = parser.parse_args()
    count = options.devices
    rows = [f"| model | batch | ms on 1 | ms on {count} | speedup |", "|---" * 5 + "|"]
    for text in options.models:
        name, batch, *size = text.split(":")
        one, many = (
            time_step(name, size, int(batch) * n, options.device, n, options.steps)
            for n in (1, count)
        )
        assert many["devices"] == count
        a, b = one["ms_per_step"], many["ms_per_step"]
        rows.append(f"| {name} | {batch} | {a:.2f} | {b:.2f} | {count * a / b:.2f} |")
    lines = compare_videos(options.device, count)
    print("\n".join([*(rows if options.models else []), *lines]))


if __name__ == "__main__":
    main()
