"""Sweeps of settings, and methods side by side: what the defaults were chosen by.

    python benchmarks/study.py sweep --models vivit_small@robust slow_r50_tiny@robust \
        --judges x3d_xs@actions --out sweep/
    python benchmarks/study.py report sweep/

Every run inverts one model with one method and setting, for all synthetic actions and
some seeds, and asks judges that take no part. `--share 2/8` does the second of eight
parts, for a process on each of several GPUs; `report` reads the results of all.
Runs whose result is there are not done again.
"""

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path

import jax
import numpy as np

import leaps_jax as lj
from leaps_jax import contact_sheet, objectives, taps
from leaps_jax.actions import motions

#: What each method is tried with: a name, and what differs from its preset.
SWEEP: dict[str, dict[str, dict]] = {
    "leaps": {
        "preset": {},
        "slow rate": {"learning_rate": 0.02},
        "smooth": {"spatial_decay": 1.5},
        "tv": {"spatial_tv": 1.0},
        "slow videos": {"temporal_decay": 0.5},
        "more noise": {"view_noise": 0.16},
        "tempo": {"view_tempo": 0.15, "view_delay": 0.1},
        "wide views": {"view_scale": 0.4, "view_shift": 0.2},
        "two views": {"views": 2},
        "long": {"steps": 1500},
        "no views": {
            "view_scale": 0.0,
            "view_shift": 0.0,
            "view_noise": 0.0,
            "view_tint": 0.0,
        },
        "means only": {"priming": 7.0, "priming_per_step": 0.0},
        "steps only": {"priming": 0.0, "priming_per_step": 7.0},
        "strong priming": {"priming": 5.0, "priming_per_step": 15.0},
        "diversity 2": {"diversity": 2.0},
        "no diversity": {"diversity": 0.0},
        "coherence 2": {"coherence": 2.0},
        "smooth tv": {"spatial_decay": 1.25, "spatial_tv": 0.5, "temporal_tv": 0.2},
        "pixels": {"parametrization": "pixels"},
        "pixels roll": {
            "parametrization": "pixels",
            "roll": 0.16,
            "view_scale": 0.0,
            "view_shift": 0.0,
            "view_noise": 0.0,
            "view_tint": 0.0,
        },
    },
    "activation_maximization": {
        "preset": {},
        "slow rate": {"learning_rate": 0.02},
        "tv": {"spatial_tv": 1.0},
        "tv in time": {"spatial_tv": 1.0, "temporal_tv": 1.0},
        "smooth": {"spatial_decay": 1.5},
        "l2": {"l2": 1.0},
    },
    "deep_inversion": {
        "preset": {},
        "diversity 2": {"diversity": 2.0},
        "diversity 10": {"diversity": 10.0},
        "tv": {"spatial_tv": 1.0},
        "tv in time": {"diversity": 2.0, "spatial_tv": 1.0, "temporal_tv": 1.0},
        "smooth": {"spatial_decay": 1.5},
    },
    "deep_dream": {
        "preset": {},
        "slow rate": {"learning_rate": 0.02},
        "tv": {"spatial_tv": 0.1},
        "one octave": {"octaves": 1},
        "short": {"steps": 50},
        "noise": {"init": "noise", "steps": 600, "octaves": 1},
    },
}


def inverted(
    reference: str, verifier: str | None, method: str, changes: dict, seeds: list[int]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Videos of all actions and seeds, (seeds * 23, t, h, w, 3), stimuli, seconds."""
    model = load(reference)
    changes = dict(changes)
    config = lj.preset(
        method, changes.pop("parametrization", "fourier"), **changes, seed=seeds[0]
    )
    objective = objectives.METHODS[method](config)
    uses = verifier is not None and "verifier" in objective.uses
    if not uses and "verifier" in objective.uses:
        objective = objective.without("diversity")
    clips = np.concatenate([stimuli(reference, seed) for seed in seeds])
    labels = list(motions.CLASSES) * len(seeds)
    began = time.monotonic()
    result = lj.synthesize(
        model,
        clips,
        labels,
        verifier=load(verifier) if uses else None,
        config=dataclasses.replace(config, steps_per_call=100),
        objective=objective,
    )
    return result.videos, clips, time.monotonic() - began


@functools.cache
def load(reference: str) -> lj.Model:
    return lj.load_model(reference)


@functools.cache
def stimuli(reference: str, seed: int) -> np.ndarray:
    names = [f"actions:{name}/{seed}" for name in motions.CLASSES]
    return lj.load_stimuli(names, load(reference).spec)


def measured(videos: np.ndarray, clips: np.ndarray, judges: list[str]) -> dict:
    """What judges see, and how much videos move."""
    labels = np.arange(len(videos)) % len(motions.CLASSES)
    found: dict = {"judges": {}}
    for name in judges:
        logits = np.asarray(taps.predict(load(name), videos))
        p = np.asarray(jax.nn.softmax(logits))
        own = p[np.arange(len(labels)), labels]
        found["judges"][name] = {
            "right": int((p.argmax(1) == labels).sum()),
            "log_p": round(float(np.log(own + 1e-9).mean()), 4),
        }
    found["of"] = len(labels)
    motion = [np.abs(np.diff(v, axis=1)).mean() for v in (videos, clips)]
    found["motion"] = round(float(motion[0] / motion[1]), 3)
    return found


def sheet(path: Path, videos: np.ndarray, frames: int) -> None:
    pictures = (videos[: len(motions.CLASSES)] * 255).astype(np.uint8)
    rows = contact_sheet.strips(list(motions.CLASSES), pictures, frames)
    contact_sheet.write_image(path, rows)


def sweep(options: argparse.Namespace) -> None:
    part, parts = map(int, options.share.split("/"))
    runs = [
        (model, method, name, changes)
        for method in options.methods
        for name, changes in SWEEP[method].items()
        for model in options.models
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    for model, method, name, changes in runs[part - 1 :: parts]:
        if time.monotonic() - BEGAN > options.seconds:
            break
        stem = f"{model.partition('@')[0]}.{method}.{name}".replace(" ", "_")
        path = options.out / f"{stem}.json"
        if path.exists():
            continue
        verifier = next((v for v in options.verifiers if not twins(v, model)), None)
        videos, clips, seconds = inverted(
            model, verifier, method, changes, list(range(options.seeds))
        )
        record = {
            "model": model,
            "verifier": verifier,
            "method": method,
            "setting": name,
            "changes": changes,
            "seconds": round(seconds, 1),
        } | measured(videos, clips, options.judges)
        sheet(options.out / f"{stem}.jpg", videos, options.frames)
        path.write_text(json.dumps(record))
        print(json.dumps(record), flush=True)


def twins(a: str, b: str) -> bool:
    return a.partition("@")[0] == b.partition("@")[0]


def report(options: argparse.Namespace) -> None:
    records = [json.loads(p.read_text()) for p in sorted(options.out.glob("*.json"))]
    models = sorted({r["model"] for r in records})
    print("| method | setting | " + " | ".join(models) + " | mean | log p | motion |")
    print("|---" * (len(models) + 5) + "|")
    rows = []
    for method in SWEEP:
        for name in SWEEP[method]:
            own = [r for r in records if (r["method"], r["setting"]) == (method, name)]
            if not own:
                continue
            cells = []
            for model in models:
                share = [_share(r) for r in own if r["model"] == model]
                cells.append(f"{share[0]:.0%}" if share else "-")
            log_p = np.mean([v["log_p"] for r in own for v in r["judges"].values()])
            motion = np.mean([r["motion"] for r in own])
            mean = np.mean([_share(r) for r in own])
            cells += [f"{mean:.0%}", f"{log_p:.2f}", f"{motion:.2f}"]
            rows.append(f"| {method} | {name} | " + " | ".join(cells) + " |")
    print("\n".join(rows))


def _share(record: dict) -> float:
    right = [v["right"] for v in record["judges"].values()]
    return float(np.mean(right)) / record["of"]


BEGAN = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("sweep")
    one.add_argument("--models", nargs="+", required=True, metavar="NAME@WEIGHTS")
    one.add_argument("--judges", nargs="+", required=True, metavar="NAME@WEIGHTS")
    one.add_argument("--verifiers", nargs="*", default=[], metavar="NAME@WEIGHTS")
    one.add_argument("--methods", nargs="+", default=list(SWEEP), choices=list(SWEEP))
    one.add_argument("--seeds", type=int, default=2)
    one.add_argument("--frames", type=int, default=8, help="of a video in a picture")
    one.add_argument("--share", default="1/1", metavar="I/N")
    one.add_argument("--seconds", type=float, default=1e9, help="start none after it")
    one.add_argument("--out", type=Path, required=True)
    two = commands.add_parser("report")
    two.add_argument("out", type=Path)
    options = parser.parse_args()
    {"sweep": sweep, "report": report}[options.command](options)


if __name__ == "__main__":
    main()
