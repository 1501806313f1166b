"""The step of this project against the same in PyTorch, one after the other.

    python benchmarks/speed.py slow_r50:8 x3d_xs:32
    python benchmarks/speed.py x3d_xs:1:16:80 --verifier vivit_small --device cpu
        --steps 5

Each argument is MODEL:BATCH or MODEL:BATCH:FRAMES:SIZE; the verifier is X3D-XS at
4 x 182 x 182, or `vivit_small`. A model is a process here and then one in PyTorch.
Prints a line of JSON for each measurement, and at the end a table of the fastest mode
of PyTorch against `leaps-jax bench`. Nothing is measured before all that PyTorch's side
imports is there:

    pip install torch torchvision transformers pytorchvideo

Without a network bring wheels of these and of what pytorchvideo imports: fvcore,
iopath, termcolor, yacs, tabulate, portalocker, parameterized, networkx and av.
"""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

#: What PyTorch's side of a model imports.
PEERS = {
    "x3d_xs": "pytorchvideo.models.x3d",
    **dict.fromkeys(
        ("slow_r50", "csn_r101", "r2plus1d_r50"), "pytorchvideo.models.hub"
    ),
    **dict.fromkeys(("r3d_18", "swin3d_t", "mvit_v2_s"), "torchvision.models.video"),
    **dict.fromkeys(("timesformer", "vivit_b_16x2"), "transformers"),
    **dict.fromkeys(("vivit_small", "slow_r50_tiny"), "torch"),
}
# as `bench` takes them; the transformer needs the moments that its weights come with
VERIFIERS = {
    "x3d_xs": ("x3d_xs", "--verifier-size", "182"),
    "vivit_small": ("vivit_small@actions",),
}
MODES = {"cuda": ("eager", "tuned", "compile"), "cpu": ("eager", "compile")}


def check_peers(names: list[str]) -> None:
    """Exits if a model has no peer or a module of the peer is missing."""
    for name in names:
        if name not in PEERS:
            raise SystemExit(
                f"{name}: has no peer in PyTorch; known: {', '.join(PEERS)}"
            )
        for module in ("torch", PEERS[name]):
            try:
                importlib.import_module(module)
            except ImportError as error:
                missing = error.name or error
                raise SystemExit(
                    f"{name}: its peer in PyTorch needs {missing}; --help says what to"
                    " install"
                ) from None


def run(*words: str) -> list[dict]:
    """The lines of JSON that a command prints, up to where it fails."""
    reports = []
    command = [sys.executable, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("{"):
                print(line, end="", flush=True)
                reports.append(json.loads(line))
    if process.returncode:
        print(" ".join(words), f"failed with {process.returncode}")
    return reports


def main() -> None:
    """Reads the arguments, runs both sides, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL:BATCH[:FRAMES:SIZE]")
    parser.add_argument("--verifier", default="x3d_xs", choices=VERIFIERS)
    parser.add_argument("--device", default="cuda", choices=MODES)
    parser.add_argument("--modes", nargs="+", help="of PyTorch; all by default")
    parser.add_argument("--steps", default="20", help="of one call; 5 are timed")
    options = parser.parse_args()
    names = [text.split(":")[0] for text in options.models]
    if options.verifier in PEERS:
        names.append(options.verifier)
    check_peers(names)
    from torch_peer import INPUTS

    peer = str(Path(__file__).with_name("torch_peer.py"))
    rows = [
        "| model | batch | clip | PyTorch | ms | here, ms | ratio |",
        "|---" * 7 + "|",
    ]
    for text in options.models:
        name, batch, *clip = text.split(":")
        frames, size = clip or map(str, INPUTS[name])
        same = ("--batch", batch, "--frames", frames, "--size", size)
        same += ("--steps", options.steps)
        published = ("--parametrization", "pixels")
        verifier = ("--verifier", *VERIFIERS[options.verifier], "--json")
        ours = run(
            "-m", "leaps_jax", "bench", "--model", name, *same, *verifier, *published
        )
        modes = options.modes or MODES[options.device]
        same += ("--verifier", options.verifier, "--device", options.device)
        theirs = run(peer, name, *modes, *same)
        if ours and theirs:
            best = min(theirs, key=lambda report: report["ms_per_step"])
            a, b = best["ms_per_step"], ours[0]["ms_per_step"]
            clip = f"{frames}x{size}"
            cells = (name, batch, clip, best["mode"], f"{a:.1f}", f"{b:.1f}")
            rows.append(f"| {' | '.join(cells)} | {a / b:.1f} |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
