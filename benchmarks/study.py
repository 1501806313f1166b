"""Settings and methods side by side: what the defaults and claims rest on.

    M="slow_r50_tiny@robust timesformer_small@robust vivit_small@robust"
    J="$M slow_r50_tiny@actions timesformer_small@actions vivit_small@actions"
    python benchmarks/study.py run methods --models $M --judges $J --out study
    python benchmarks/study.py report study

A run inverts one model with one method and setting, for all synthetic actions and some
seeds, and asks judges. It is a JSON file in the folder, with a picture beside it; what
is there is not done again. `--share 2/8` does the second of eight parts, for a process
on each of several GPUs. `report` prints tables of what the folder holds. Judges that
took part in a run (the model, its verifier, its twin of other weights) never count.
"""

import argparse
import functools
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

import leaps_jax as lj
from leaps_jax import evaluation, objectives, parametrizations, synthesis
from leaps_jax.actions import motions
from leaps_jax.cli.main import turn_off_triton_gemm
from leaps_jax.evaluation import metrics
from leaps_jax.runs import contact_sheet
from leaps_jax.terms import Objective

CLASSES = motions.CLASSES
PARTNERS = {"reversed": motions.REVERSED, "mirrored": motions.MIRRORED}

#: Runs of a study: by name and variant, the method and what differs from its preset.
Runs = dict[tuple[str, str], tuple[str, dict[str, Any]]]
NO_VIEWS = dict(view_scale=0.0, view_shift=0.0, view_noise=0.0, view_tint=0.0)
NO_PRIMING = dict(priming=0.0, priming_per_step=0.0)
FROM_NOISE = dict(init="noise", octaves=1, steps=200)

#: LEAPS with other settings.
SWEEP: Runs = {
    ("LEAPS", name): ("leaps", changes)
    for name, changes in {
        "preset": {},
        "cells 1": {"priming_cells": 1},
        "cells 7": {"priming_cells": 7},
        "primed by means": {"priming": 7.0, "priming_per_step": 0.0},
        "primed by steps": {"priming": 0.0, "priming_per_step": 7.0},
        "tv 0": {"spatial_tv": 0.0},
        "tv 1": {"spatial_tv": 1.0},
        "tv 3": {"spatial_tv": 3.0},
        "no views": NO_VIEWS,
        "pixels": {"parametrization": "pixels"},
        "rate 0.02": {"learning_rate": 0.02},
        "rate 0.1": {"learning_rate": 0.1},
        "decay 1.5": {"spatial_decay": 1.5},
        "views in time": {"view_tempo": 0.15, "view_delay": 0.1},
        "noise 0.16": {"view_noise": 0.16},
        "two views": {"views": 2},
        "pixels, roll": {"parametrization": "pixels", "roll": 0.16} | NO_VIEWS,
        "decay in time 0.5": {"temporal_decay": 0.5},
    }.items()
}

SMOOTH = dict(spatial_tv=10.0, spatial_decay=1.5, temporal_decay=0.5)

#: LEAPS with settings that might show more of standard models.
STANDARD: Runs = {
    ("LEAPS", name): ("leaps", changes)
    for name, changes in {
        "tv 10": {"spatial_tv": 10.0},
        "tv 10, smooth": SMOOTH,
        "tv 10, diversity 3": {"spatial_tv": 10.0, "diversity": 3.0},
        "tv 10, four noisy views": {
            "spatial_tv": 10.0,
            "view_noise": 0.2,
            "views": 4,
        },
        "tv 30": {"spatial_tv": 30.0},
        "tv 10, 1200 steps": {"spatial_tv": 10.0, "steps": 1200},
        "tv 10, smooth, 1200 steps": SMOOTH | {"steps": 1200},
        "tv 10, smooth, 1200 steps, two noisy views": SMOOTH
        | {"steps": 1200, "view_noise": 0.2, "views": 2},
        "tv 10, smooth, 1200 steps, grown": SMOOTH | {"steps": 1200, "grown": True},
        "tv 10, smooth, 1200 steps, diversity 2": SMOOTH
        | {"steps": 1200, "diversity": 2.0},
        "tv 10, smoother, 1200 steps": SMOOTH
        | {"steps": 1200, "spatial_decay": 2.0, "temporal_decay": 1.0},
        "tv 30, smooth, 1200 steps": SMOOTH | {"steps": 1200, "spatial_tv": 30.0},
        "tv 10, smooth, 1200 steps, priming 3 times": SMOOTH
        | {"steps": 1200, "priming": 6.0, "priming_per_step": 15.0},
        "tv 10, smooth, 2400 steps": SMOOTH | {"steps": 2400},
        "tv 10, smooth, 2400 steps, priming 3 times": SMOOTH
        | {"steps": 2400, "priming": 6.0, "priming_per_step": 15.0},
        "tv 10, smooth, 2400 steps, priming 9 times": SMOOTH
        | {"steps": 2400, "priming": 18.0, "priming_per_step": 45.0},
    }.items()
}

#: The preset before, with which the recorded tables of the other studies were made.
SLOWER = dict(
    steps=400,
    spatial_decay=1.0,
    learning_rate=0.05,
    final_learning_rate=1e-3,
    beta1=0.9,
    beta2=0.99,
    epsilon=0.3,
    weight_decay=0.0,
)

#: More and fewer steps of robust models.
STEPS: Runs = {
    ("LEAPS", name): ("leaps", changes)
    for name, changes in {
        "preset": {},
        "slower": SLOWER,
        "tv 2.5": {"spatial_tv": 2.5},
        "epsilon 0.1": {"epsilon": 0.1},
        "epsilon 0.1, weight decay 0.5": {"epsilon": 0.1, "weight_decay": 0.5},
        "epsilon 0.1, 400 steps": {"epsilon": 0.1, "steps": 400},
        "epsilon 0.1, 150 steps": {"epsilon": 0.1, "steps": 150},
    }.items()
}

STRONG = SMOOTH | dict(priming=6.0, priming_per_step=15.0, epsilon=0.1)

#: Likewise of standard models.
STANDARD_STEPS: Runs = {
    ("LEAPS", name): ("leaps", changes)
    for name, changes in {
        "preset": {},
        "epsilon 0.1": {"epsilon": 0.1},
        "strong, slower, 1200 steps": STRONG | SLOWER | SMOOTH | {"steps": 1200},
        "strong, 600 steps": STRONG | {"steps": 600},
        "strong, 1200 steps, rate 0.05": STRONG
        | {"steps": 1200, "learning_rate": 0.05, "weight_decay": 0.1},
    }.items()
}

#: Methods over the same parametrization, views and rate. Each is tried with the same
#: number of variants, of which a judge that does not count chooses one.
METHODS: Runs = {
    (name, variant): (method, changes | more)
    for variant, index in {"preset": 0, "tv 1": 1, "weight": 2}.items()
    for name, method, changes, weight in (
        ("LEAPS", "leaps", {}, {"priming": 4.0, "priming_per_step": 10.0}),
        ("LEAPS without priming", "leaps", NO_PRIMING, {"diversity": 2.0}),
        ("activation maximization", "activation_maximization", {}, {"l2": 1.0}),
        ("DeepInversion", "deep_inversion", {}, {"diversity": 2.0}),
        ("DeepDream from noise", "deep_dream", FROM_NOISE, {"l2": 1.0}),
        ("DeepDream from the clip", "deep_dream", {}, {"l2": 1.0}),
    )
    for more in [[{}, {"spatial_tv": 1.0}, weight][index]]
}

#: Terms left out of LEAPS.
ABLATIONS: Runs = {
    ("LEAPS", "preset"): ("leaps", {}),
    ("LEAPS without diversity", "preset"): ("leaps", {"diversity": 0.0}),
    ("LEAPS without coherence", "preset"): ("leaps", {"coherence": 0.0}),
    ("LEAPS without priming", "preset"): ("leaps", NO_PRIMING),
}

STUDIES: dict[str, Runs] = {
    "sweep": SWEEP,
    "standard": STANDARD,
    "steps": STEPS,
    "standard-steps": STANDARD_STEPS,
    "methods": METHODS,
    "ablations": ABLATIONS,
}


@functools.cache
def load(reference: str) -> lj.Model:
    """A model, loaded once."""
    return lj.load_model(reference)


@functools.cache
def stimuli(reference: str, seed: int) -> np.ndarray:
    """A rendered clip of each action, (23, t, h, w, 3), as the model takes them."""
    names = [f"actions:{name}/{seed}" for name in CLASSES]
    return lj.load_stimuli(names, load(reference).spec)


def name_of(reference: str) -> str:
    """The network of `NAME@WEIGHTS`."""
    return reference.partition("@")[0]


def mark(judge: str, model: str, verifier: str | None) -> str | None:
    """Why a judge does not count."""
    if judge in (model, verifier):
        return "self" if judge == model else "verifier"
    return "twin" if name_of(judge) == name_of(model) else None


def run(
    model: str, name: str, variant: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Inverts a model for all actions and seeds; what judges say, as JSON holds it."""
    method, changes = STUDIES[options.study][name, variant]
    changes = {"steps_per_call": 100} | changes
    grown = changes.pop("grown", False)
    config = lj.preset(method, changes.pop("parametrization", "fourier"), **changes)
    objective = objectives.METHODS[method](config)
    verifier = None
    if "verifier" in objective.uses:
        others = [v for v in options.verifiers if name_of(v) != name_of(model)]
        verifier = others[0] if others else None
        if verifier is None:
            objective = objective.without_verifier()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    clips = np.concatenate([stimuli(model, seed) for seed in seeds])
    labels = list(CLASSES) * len(seeds)
    began = time.monotonic()
    other = load(verifier) if verifier else None
    given = (load(model), clips, labels, other, config, objective)
    videos = grow(*given) if grown else lj.synthesize(*given).videos
    seconds = time.monotonic() - began
    judges = dict.fromkeys([*options.judges, options.select])
    marks = {judge: mark(judge, model, verifier) for judge in judges}
    marks[options.select] = marks[options.select] or "selects"
    found = (briefly if options.study in BRIEF else evaluation.evaluate)(
        videos,
        labels,
        {judge: load(judge) for judge in judges},
        stimuli=clips,
        partners=PARTNERS,
        marks={judge: why for judge, why in marks.items() if why},
        batch=32,
    )
    pictures = (videos[: len(CLASSES)] * 255).astype(np.uint8)
    sheet = contact_sheet.strips(list(CLASSES), pictures, options.frames)
    contact_sheet.write_image(options.out / f"{stem(model, name, variant)}.jpg", sheet)
    return {
        "study": options.study,
        "name": name,
        "variant": variant,
        "method": method,
        "changes": STUDIES[options.study][name, variant][1],
        "model": model,
        "verifier": verifier,
        "select": options.select,
        "videos": len(labels),
        "first_seed": options.first_seed,
        "seconds": round(seconds, 1),
        "found": found,
    }


def grow(
    model: lj.Model,
    clips: np.ndarray,
    labels: list[str],
    verifier: lj.Model | None,
    config: lj.Config,
    objective: Objective,
) -> np.ndarray:
    """Videos that grow from the middle of a grey frame, in three equal parts of a run.

    After A. Ghiasi et al., "Plug-In Inversion", ICML 2022.
    """
    state = None
    for part, share in enumerate((0.4, 0.7, 1.0), start=1):
        middle = in_the_middle(share, config)
        problem = synthesis.prepare(
            model, clips, labels, verifier, config, objective, parametrization=middle
        )
        for snapshot in synthesis.iterate(problem, state):
            if snapshot.step >= config.steps * part // 3:
                break
        state = snapshot.state()
    return synthesis.as_pixels(problem, state.parameters)


def in_the_middle(share: float, config: lj.Config) -> parametrizations.Parametrization:
    """The spectrum of `config`, shown in the middle of a grey frame."""
    whole = parametrizations.from_config(config)

    def decode(parameters, spec):
        far = np.abs(np.linspace(-1, 1, spec.size))
        edge = np.clip((share - far) / 0.1 + 1, 0, 1)
        window = (edge[:, None] * edge)[..., None]
        return 0.45 + window * (whole.decode(parameters, spec) - 0.45)

    return parametrizations.Parametrization("middle", whole.init, decode)


#: Studies of many settings, in which top-1 and motion energy are enough.
BRIEF = ("sweep", "standard", "steps", "standard-steps")


def briefly(videos, labels, judges, *, stimuli, marks, batch, **_) -> dict[str, Any]:
    """Top-1 of each judge and motion energy, in the layout of `evaluation.evaluate`."""
    answers = {}
    for name, model in judges.items():
        probabilities = evaluation.seen(model, videos, batch)
        right = metrics.in_top(probabilities, [*map(model.spec.label_index, labels)], 1)
        top1 = metrics.estimate(right)
        answers[name] = {"videos": {"top1": top1}, "counted": name not in marks}
        answers[name] |= {"mark": marks[name]} if name in marks else {}
    counted = [a["videos"]["top1"]["value"] for a in answers.values() if a["counted"]]
    energy, still = (evaluation.motion_energy(x).sum() for x in (videos, stimuli))
    alike = [row["correlation"] for row in metrics.nearest(videos, stimuli)]
    return {
        "judges": answers,
        "held_out": {"videos": {"top1": {"value": float(np.mean(counted))}}},
        "temporal": {"motion_energy": {"ratio": float(energy / still)}},
        "nearest": {"correlation": metrics.estimate(alike)},
    }


def stem(model: str, name: str, variant: str) -> str:
    """The name of the files of a run."""
    words = f"{name_of(model)}.{model.rpartition('@')[2]}.{name}.{variant}"
    return re.sub(r"[^\w.-]+", "_", words)


def do(options: argparse.Namespace) -> None:
    """Does a part of a study."""
    part, parts = map(int, options.share.split("/"))
    every = [
        (model, name, variant)
        for name, variant in STUDIES[options.study]
        if options.only is None or name in options.only
        if options.variants is None or variant in options.variants
        for model in options.models
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    for model, name, variant in every[part - 1 :: parts]:
        if time.monotonic() - BEGAN > options.seconds:
            break
        path = options.out / f"{options.study}.{stem(model, name, variant)}.json"
        if not path.exists():
            record = run(model, name, variant, options)
            path.write_text(json.dumps(record))
            print(*row(record), sep=" | ", flush=True)


COLUMNS = (
    "model",
    "run",
    "top-1",
    "top-5",
    "Inception Score",
    "motion energy",
    "correlation with the nearest stimulus",
    "right, of pairs",
    "flips",
    "by judge",
)


def row(record: dict[str, Any]) -> list[str]:
    """What a record says, under `COLUMNS`."""
    found = record["found"]
    videos = found["held_out"]["videos"]
    pairs = videos.get("motion", {}).get("all") or {}
    by_judge = []
    for name, answers in found["judges"].items():
        share = answers["videos"]["top1"]["value"]
        star = "" if answers["counted"] else f" ({answers['mark']})"
        by_judge.append(f"{name} {share:.0%}{star}")
    return [
        record["model"],
        f"{record['name']}, {record['variant']}",
        _number(videos["top1"], "%"),
        _number(videos.get("top5"), "%"),
        _number(videos.get("inception_score")),
        _number((found["temporal"]["motion_energy"] or {}).get("ratio")),
        _number((found.get("nearest") or {}).get("correlation")),
        _number(pairs.get("right"), "%"),
        _number(pairs.get("flips"), "%"),
        ", ".join(by_judge),
    ]


def _number(estimate: Any, unit: str = "") -> str:
    value = estimate.get("value") if isinstance(estimate, dict) else estimate
    if value is None:
        return "-"
    return f"{value:.0%}" if unit else f"{value:.2f}"


def report(options: argparse.Namespace) -> None:
    """Prints a table of all records, and of each method the variant that was chosen."""
    records = [json.loads(p.read_text()) for p in sorted(options.out.glob("*.json"))]
    for study, runs in STUDIES.items():
        own = [r for r in records if r["study"] == study]
        if not own:
            continue
        print(f"\n{study}\n\n| " + " | ".join(COLUMNS) + " |")
        print("|---" * len(COLUMNS) + "|")
        for name, variant in runs:
            for record in own:
                if (record["name"], record["variant"]) == (name, variant):
                    print("| " + " | ".join(row(record)) + " |")
        print("\n| run | models | chosen by | top-1 | Inception Score |")
        print("|---" * 5 + "|")
        for name, variant in runs:
            of = [r for r in own if (r["name"], r["variant"]) == (name, variant)]
            if of:
                cells = [_mean(of, key) for key in ("top1", "inception_score")]
                chosen = np.mean([selected(r) for r in of])
                print(
                    f"| {name}, {variant} | {len(of)} | {chosen:.0%} | {cells[0]:.1%}"
                    f" | {cells[1]:.2f} |"
                )


def selected(record: dict[str, Any]) -> float:
    """What the judge that chooses variants sees as its class."""
    return record["found"]["judges"][record["select"]]["videos"]["top1"]["value"]


def _mean(records: list[dict[str, Any]], key: str) -> float:
    of = [r["found"]["held_out"]["videos"].get(key) for r in records]
    return float(np.mean([v["value"] for v in of if v and v["value"] is not None]))


BEGAN = time.monotonic()


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="do a study, or a part of it")
    one.add_argument("study", choices=list(STUDIES))
    one.add_argument("--models", nargs="+", required=True, metavar="NAME@WEIGHTS")
    one.add_argument("--judges", nargs="+", required=True, metavar="NAME@WEIGHTS")
    one.add_argument(
        "--verifiers",
        nargs="*",
        default=["slow_r50_tiny@robust", "vivit_small@robust"],
        metavar="NAME@WEIGHTS",
        help="the first of another network than the model's is used",
    )
    one.add_argument(
        "--select",
        default="x3d_xs@actions",
        metavar="NAME@WEIGHTS",
        help="the judge that chooses settings, and therefore does not count",
    )
    one.add_argument("--only", nargs="+", metavar="NAME", help="runs of the study")
    one.add_argument("--variants", nargs="+", metavar="NAME", help="likewise")
    one.add_argument("--seeds", type=int, default=4)
    one.add_argument(
        "--first-seed", type=int, default=0, help="others need a folder of their own"
    )
    one.add_argument("--frames", type=int, default=8, help="of a video in a picture")
    one.add_argument("--share", default="1/1", metavar="I/N")
    one.add_argument("--seconds", type=float, default=1e9, help="start none after it")
    one.add_argument("--out", type=Path, required=True)
    two = commands.add_parser("report", help="print the tables of a folder")
    two.add_argument("out", type=Path)
    options = parser.parse_args()
    turn_off_triton_gemm()
    {"run": do, "report": report}[options.command](options)


if __name__ == "__main__":
    main()
