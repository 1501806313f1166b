"""A run: the folder that holds everything that one synthesis produced.

    run.json        every setting, versions, status, final terms, accuracies
    metrics.jsonl   a line per logged step, each term raw and weighted, per video
    videos.npz      videos and stimuli (n, t, h, w, 3) float32 in [0, 1], labels (n,)
    videos/         NNN_<class>.mp4, and the stimuli beside them
    preview.mp4     videos as they were a moment ago, those of the first process
    index.html      a page that shows stimuli, videos and what the models see
    state/          the last states of the optimisation, from which a run goes on

Of several processes each writes its own videos and state, and the first all the rest;
the folder must be on a disk that all of them share.

Files are replaced whole, so that a run killed at any moment can be resumed; the state
is saved between two calls of the compiled steps, where nothing else is in flight.
"""

import hashlib
import html
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax

import leaps_jax
from leaps_jax import evaluation, synthesis
from leaps_jax.data import stimuli
from leaps_jax.data.stimuli import FPS
from leaps_jax.errors import UserError
from leaps_jax.model import Model
from leaps_jax.progress import Steps, interruptible
from leaps_jax.runs import render
from leaps_jax.runtime import multihost, parallel
from leaps_jax.runtime.engine import NotFiniteError, Snapshot
from leaps_jax.runtime.executable_cache import ExecutableCache
from leaps_jax.synthesis import Problem
from leaps_jax.zoo import checkpoints

_OWN = ["run.json", "metrics.jsonl", "videos.npz", "videos", "preview.mp4"]
_OWN += ["comparison.gif", "index.html", "state"]
_LOG_EVERY = 10  # steps between two lines of metrics.jsonl


def execute(
    folder: Path,
    problem: Problem,
    settings: Mapping[str, Any],
    judges: Mapping[str, Model],
    *,
    overwrite: bool = False,
    save_every: float = 30.0,
    preview_every: int = 100,
    programs: ExecutableCache | None = None,
) -> dict[str, Any]:
    """Runs a synthesis in a folder, or goes on with the one that the folder holds.

    Args:
      folder: of the run; made if missing.
      problem: from `synthesis.prepare`.
      settings: what defines the run; a folder with other settings is refused.
      judges: models by role ("self", "verifier", ...) that classify the result.
      overwrite: delete the run that the folder holds.
      save_every: seconds between two saved states.
      preview_every: steps between two previews, 0 for none.
      programs: where compiled steps are kept for the next start; nowhere by default.

    Returns:
      The content of `run.json`; its `status` is "finished", or "stopped" after
      Ctrl-C.

    Raises:
      UserError: the folder holds something else or cannot be written.
      NotFiniteError: after the last good state was saved.
    """
    identity, first = _identity(problem, settings), multihost.first()
    identities = multihost.exchange(identity)
    with multihost.together():
        _check_same(identities[0], identity)
    record = multihost.on_first(lambda: _open(folder, settings, identity, overwrite))
    if record["status"] == "finished":
        return multihost.on_first(lambda: _judged(folder, problem, record, judges))
    with multihost.together():
        if not (folder / "run.json").exists():
            raise UserError(
                f"out={str(folder)!r}: is not the folder of process 0; choose one on a"
                " disk that all processes share"
            )
        held = parallel.held(len(problem), parallel.all_devices())
        state = checkpoints.restore_state(folder / "state", problem.init_state(held))
        start = 0 if state is None else int(state.step[0])
        record |= {"status": "running", "step": start}
        if first:
            _keep_lines(folder / "metrics.jsonl", start)
            write_json(folder / "run.json", record)

    config, began = problem.config, time.monotonic()
    seconds_before, saved = record["seconds"], time.monotonic()
    last: Snapshot | None = None
    shown = Steps("synthesize", config.steps, start, shown=first)
    with shown as steps, interruptible() as stop:
        if start:
            steps.say(f"resuming {folder} at step {start}")
        try:
            for snapshot in synthesis.iterate(problem, state, programs=programs):
                last = snapshot
                if first:
                    _log(folder / "metrics.jsonl", problem, snapshot)
                steps.update(snapshot.step, _shown(snapshot))
                done = snapshot.step == config.steps
                length = len(snapshot.metrics["total"])
                if first and preview_every and snapshot.step % preview_every < length:
                    _preview(folder, problem, snapshot)
                late = time.monotonic() - saved > save_every
                stopping, saving = multihost.any_of(bool(stop), late)
                if stopping or done or saving:
                    now = snapshot.state()
                    with multihost.together():
                        checkpoints.save_state(folder / "state", snapshot.step, now)
                    saved = time.monotonic()
                if stopping:
                    break
        except NotFiniteError as error:
            last = error.snapshot
            with multihost.together():
                checkpoints.save_state(folder / "state", last.step, last.state())
            record |= {"status": "failed", "step": last.step, "error": str(error)}
            _write_results(folder, problem, last.state(), record, judges)
            raise
    record["seconds"] = round(seconds_before + time.monotonic() - began, 2)
    if last is not None:
        final = last.state()
        record |= {
            "status": "finished" if last.step == config.steps else "stopped",
            "step": last.step,
        }
    else:  # killed after its last state was saved and before its results were
        assert state is not None
        final = state
        record["status"] = "finished"
    if first:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        record["final"] = json.loads(lines[-1])
    _write_results(folder, problem, final, record, judges)
    return record


def _check_same(first: dict[str, Any], own: dict[str, Any]) -> None:
    if changed := differences(first, own):
        raise UserError(
            f"process={jax.process_index()}: differs from process 0 in"
            f" {', '.join(changed)}; give all processes the same arguments"
        )


def _judged(
    folder: Path,
    problem: Problem,
    record: dict[str, Any],
    judges: Mapping[str, Model],
) -> dict[str, Any]:
    """Asks the judges of a finished run that were not asked before."""
    new = {
        role: model for role, model in judges.items() if role not in record["judges"]
    }
    if new:
        videos = np.load(folder / "videos.npz")["videos"]
        names = _class_names(problem)
        for role, model in new.items():
            record["judges"][role] = evaluation.judge(model, videos, names)
        if "videos_not_written" not in record:
            _write_page(folder, problem, record)
        write_json(folder / "run.json", record)
    return record


def _class_names(problem: Problem) -> list[str]:
    return [problem.model.spec.classes[label] for label in problem.labels]


def _contents(problem: Problem) -> dict[str, str | None]:
    """Digests: the same path may hold other pixels or weights tomorrow."""
    verifier = problem.verifier
    return {
        "pixels of the stimuli": digest(problem.stimuli),
        "weights of the model": digest(problem.model.variables),
        "weights of the verifier": digest(verifier and verifier.variables),
    }


def digest(tree: Any) -> str:
    """Of the content of all arrays, by which `identity` in run.json knows weights."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def check(
    folder: Path,
    problem: Problem,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """What `execute` would go on with: the content of `run.json`, None for a new run.

    Raises:
      UserError: the folder holds something else or cannot be written.
    """
    return _held(folder, _identity(problem, settings), overwrite)


#: Settings that are recorded, and compared by their contents.
_BY_CONTENTS = ("stimulus", "model", "verifier")


def _identity(problem: Problem, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that makes two runs one, flat, as JSON would give it back."""
    own = {k: v for k, v in settings.items() if k not in (*_BY_CONTENTS, "config")}
    own |= settings.get("config", {}) | _contents(problem)
    return json.loads(json.dumps(own))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The keys with other values.

    >>> differences({"steps": 5, "size": 32}, {"steps": 6, "size": 32})
    ['steps']
    """
    return [k for k in {**a, **b} if a.get(k) != b.get(k)]


def _held(
    folder: Path, identity: dict[str, Any], overwrite: bool
) -> dict[str, Any] | None:
    out = f"out={str(folder)!r}"
    if reason := checkpoints.unwritable(folder):
        raise UserError(f"{out}: {reason}; choose another folder")
    if not folder.exists():
        return None
    found = [c.name for c in folder.iterdir()] if folder.is_dir() else [folder.name]
    foreign = [name for name in found if name not in _OWN and name[0] != "."]
    if found and (foreign or "run.json" not in found):
        what = f" (it holds {min(foreign)})" if foreign and folder.is_dir() else ""
        raise UserError(f"{out}: exists and is no run{what}; choose another folder")
    if overwrite or not found:
        return None
    try:
        record = json.loads((folder / "run.json").read_text())
        before = dict(record["identity"])
        record["status"], record["step"], record["seconds"]
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise UserError(f"{out}: run.json is damaged; use --overwrite") from None
    if changed := differences(before, identity):
        raise UserError(
            f"{out}: holds another run (it differs in {', '.join(changed)}); choose"
            " another folder or --overwrite"
        )
    return record


def _open(
    folder: Path, settings: Mapping[str, Any], identity: dict[str, Any], overwrite: bool
) -> dict[str, Any]:
    record_path = folder / "run.json"
    held = _held(folder, identity, overwrite)
    if held is not None:
        return held
    try:
        if overwrite and record_path.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "status": "running",
            "step": 0,
            "settings": dict(settings),
            "identity": identity,
            "versions": versions(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "seconds": 0.0,
        }
        write_json(record_path, record)
    except OSError as error:
        raise UserError(
            f"out={str(folder)!r}: cannot be written ({error.strerror}); choose"
            " another folder"
        ) from error
    return record


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {
        "leaps_jax": leaps_jax.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
    }


def _shown(snapshot: Snapshot) -> dict[str, float]:
    """The mean over videos of every metric at the last step of the snapshot."""
    return {name: float(v[-1].mean()) for name, v in snapshot.metrics.items()}


def _lines(problem: Problem, snapshot: Snapshot) -> Iterator[str]:
    weights = problem.objective.weights
    first = snapshot.step - len(snapshot.metrics["total"]) + 1
    for row, total in enumerate(snapshot.metrics["total"]):
        step = first + row
        if step % _LOG_EVERY and step != snapshot.step:
            continue
        raw = {name: snapshot.metrics[name][row] for name in weights}
        yield json.dumps(
            {
                "step": step,
                "total": _rounded(total),
                "confidence": _rounded(snapshot.metrics["confidence"][row]),
                "gradient": _rounded(snapshot.metrics["gradient"][row]),
                "raw": {name: _rounded(v) for name, v in raw.items()},
                "weighted": {n: _rounded(weights[n] * v) for n, v in raw.items()},
            }
        )


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{v:.6g}") for v in values]


def _log(path: Path, problem: Problem, snapshot: Snapshot) -> None:
    with path.open("a") as file:
        file.writelines(line + "\n" for line in _lines(problem, snapshot))


def _keep_lines(path: Path, step: int) -> None:
    """Drops the lines after `step`: their steps will be done again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # cut short by a kill
            continue
    _replace(path, "".join(kept).encode())


def _preview(folder: Path, problem: Problem, snapshot: Snapshot) -> None:
    if render.can_write() is None:
        videos = synthesis.best_pixels(problem, snapshot.state())[:16]
        render.write_video(folder / "preview.mp4", render.grid(videos), _fps(problem))


def _fps(problem: Problem) -> float:
    """Real time."""
    return FPS / problem.model.spec.stride


def _write_results(
    folder: Path,
    problem: Problem,
    state: synthesis.State,
    record: dict[str, Any],
    judges: Mapping[str, Model],
) -> None:
    """Writes videos and what judges see in them, and the record last."""
    numbers = parallel.own(len(problem), parallel.all_devices())
    videos = synthesis.best_pixels(problem, state)[: len(numbers)]
    everything = _write_arrays(folder, problem, videos)
    classes = record["classes"] = _class_names(problem)
    with multihost.together():
        verdicts = {}
        if len(numbers):
            own = [classes[number] for number in numbers]
            for role, model in judges.items():
                verdicts[role] = evaluation.judge(model, videos, own)
    parts = multihost.exchange(verdicts)
    record["judges"] = {
        role: evaluation.joined([part[role] for part in parts if part])
        for role in judges
    }
    reason, names = render.can_write(), _file_names(classes)
    with multihost.together():
        for number, video in zip(numbers, videos, strict=True):
            if reason:
                break
            path = folder / "videos" / f"{names[number]}.mp4"
            render.write_video(path, video, _fps(problem))
            if problem.stimuli is not None:
                path = path.with_name(f"{names[number]}_stimulus.mp4")
                render.write_video(path, problem.stimuli[number], _fps(problem))
    with multihost.together():
        if multihost.first():
            if reason:
                record["videos_not_written"] = reason
            else:
                if problem.stimuli is not None:
                    shown = (problem.stimuli, everything)
                    _write_comparison(folder, *shown, _fps(problem))
                _write_page(folder, problem, record)
            write_json(folder / "run.json", record)


def _file_names(classes: list[str]) -> list[str]:
    return [f"{i:03d}_{render.safe_name(name)}" for i, name in enumerate(classes)]


def _write_arrays(folder: Path, problem: Problem, videos: np.ndarray) -> np.ndarray:
    """Writes `videos.npz`; the first process gets the videos of all processes."""
    count, index = jax.process_count(), jax.process_index()
    parts = [folder / f".videos-{i}-of-{count}.npy" for i in range(count)]
    with multihost.together():
        if count > 1:
            np.save(parts[index], videos)
    with multihost.together():
        if multihost.first():
            if count > 1:
                videos = np.concatenate([np.load(part) for part in parts])
            stimuli = np.zeros((0, *videos.shape[1:]), np.float32)
            if problem.stimuli is not None:
                stimuli = problem.stimuli
            temporary = folder / ".videos.npz"
            np.savez(temporary, videos=videos, stimuli=stimuli, labels=problem.labels)
            os.replace(temporary, folder / "videos.npz")
            for part in folder.glob(".videos-*-of-*.npy"):
                part.unlink()
    return videos


def _write_comparison(
    folder: Path, stimuli: np.ndarray, videos: np.ndarray, fps: float
) -> None:
    """The first stimuli beside their videos, large enough to look at."""
    shown = render.side_by_side(stimuli[:4], videos[:4])
    times = max(1, round(240 / videos.shape[2]))
    large = shown.repeat(times, axis=1).repeat(times, axis=2)
    render.write_video(folder / "comparison.gif", large, fps)


def _write_page(folder: Path, problem: Problem, record: Mapping[str, Any]) -> None:
    spec, names = problem.model.spec, _file_names(_class_names(problem))
    player = '<video src="videos/{}.mp4" autoplay loop muted playsinline></video>'
    rows = []
    for number, name in enumerate(names):
        seen = "<br>".join(
            f"{html.escape(role)}: {html.escape(verdict['seen'][number])}"
            f" {verdict['confidence'][number]:.0%}"
            for role, verdict in record["judges"].items()
        )
        cells = [html.escape(spec.classes[problem.labels[number]])]
        if problem.stimuli is not None:
            cells.append(player.format(name + "_stimulus"))
        cells += [player.format(name), seen]
        rows.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    heads = ["class", "stimulus", "synthesised", "seen as"]
    if problem.stimuli is None:
        heads.remove("stimulus")
    head = "".join(f"<th>{h}</th>" for h in heads)
    title = f"{html.escape(spec.name)}, step {record['step']} of {problem.config.steps}"
    page = _PAGE.format(title=title, head=head, rows="\n".join(rows))
    _replace(folder / "index.html", page.encode())


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.4 sans-serif; margin: 2em auto; max-width: 60em }}
video {{ width: 16em; image-rendering: pixelated; display: block }}
td, th {{ text-align: left; padding: .4em 1em .4em 0; vertical-align: top }}
</style>
<h1>{title}</h1>
<table><tr>{head}</tr>
{rows}
</table>
<p>Settings and numbers: <a href="run.json">run.json</a>,
<a href="metrics.jsonl">metrics.jsonl</a>; arrays: <a href="videos.npz">videos.npz</a>.
</html>
"""


def results(folder: Path) -> dict[str, Any]:
    """What a run made: `videos` and `stimuli` (n, t, h, w, 3), and n `classes`.

    Its `settings` and `identity` are those of run.json, empty where it has none;
    `saved` are the videos as read back from their mp4 files, None where one is missing.

    Raises:
      UserError: there is no run, or it has no results yet.
    """
    try:
        record = json.loads((folder / "run.json").read_text())
        with np.load(folder / "videos.npz") as arrays:
            found = {name: arrays[name] for name in ("videos", "stimuli")}
        found |= {name: record.get(name, {}) for name in ("settings", "identity")}
        found["classes"] = record["classes"]
        return found | {"saved": _saved(folder, found["classes"], found["videos"])}
    except (OSError, ValueError, KeyError):
        what = "holds no finished run; give a folder that synthesize wrote"
        raise UserError(f"run={str(folder)!r}: {what}") from None


def _saved(folder: Path, classes: list[str], videos: np.ndarray) -> np.ndarray | None:
    paths = [folder / "videos" / f"{name}.mp4" for name in _file_names(classes)]
    if render.can_write() or not all(path.is_file() for path in paths):
        return None
    try:
        clips = [stimuli.read_clip(path, argument="run") for path in paths]
    except UserError:
        return None
    _, t, h, w, _ = videos.shape  # an odd height or width was made even
    found = [clip[:t, :h, :w].astype(np.float32) / 255 for clip in clips]
    return np.stack(found) if {v.shape for v in found} == {(t, h, w, 3)} else None


def write_json(path: Path, value: Any) -> None:
    """Writes a file that appears whole or not at all."""
    _replace(path, (json.dumps(value, indent=1) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name("." + path.name)
    temporary.write_bytes(content)
    os.replace(temporary, path)
