"""A run: the folder that holds everything that one synthesis produced.

    run.json        every setting, versions, status, final terms, accuracies, `files`
    metrics.jsonl   a line per logged step, each term raw and weighted, per video
    videos.npz      videos and stimuli (n, t, h, w, 3) float32 in [0, 1], labels (n,)
    videos/         NNN_<class>.mp4, and the stimuli beside them
    preview.mp4     videos as they were a moment ago, those of the first process
    previews.zip    what some of them looked like on the way
    index.html      a page that shows all of this, from the start of the run
    state/          the last states of the optimisation, from which a run goes on

Of several processes each writes its own videos and state, and the first all the rest;
the folder must be on a disk that all of them share.

Files are replaced whole, so that a run killed at any moment can be resumed; the state
is saved between two calls of the compiled steps, where nothing else is in flight.
"""

import contextlib
import functools
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from leaps_jax import evaluation, files, render, schemas, synthesis
from leaps_jax.errors import UserError
from leaps_jax.model import Model
from leaps_jax.progress import Steps, counted, interruptible
from leaps_jax.runs import arrays, events, media, metrics, ownership, page, previews
from leaps_jax.runtime import multihost, parallel
from leaps_jax.runtime.engine import Engine, NotFiniteError, Snapshot
from leaps_jax.synthesis import Problem
from leaps_jax.update import State
from leaps_jax.zoo import checkpoints, states

_FILES = ["run.json", "metrics.jsonl", "videos.npz", "preview.mp4"]
_FILES += ["previews.zip", "comparison.gif", "index.html"]
_CONTENTS = [*_FILES, "videos", "state"]
#: A video, and a state of one process, of several, or that a kill has left half.
_VIDEO = r"videos/[0-9]{3,}_[^/]+\.mp4"
_STATE = r"[0-9]+(-[0-9]+-of-[0-9]+\.npz|\.orbax-checkpoint-tmp.*)?"


def execute(
    folder: Path,
    problem: Problem,
    settings: Mapping[str, Any],
    judges: Mapping[str, Model],
    *,
    overwrite: bool = False,
    save_every: float = 30.0,
    preview_every: int = 100,
    engine: Engine | None = None,
    tensorboard: Path | None = None,
) -> dict[str, Any]:
    """Runs a synthesis in a folder, or goes on with the one that the folder holds.

    Args:
      folder: of the run; made if missing.
      problem: from `synthesis.prepare`.
      settings: what defines the run; a folder with other settings is refused.
      judges: models by role ("self", "verifier", ...) that classify the result.
      overwrite: delete the run that the folder holds; files of others stay.
      save_every: seconds between two saved states.
      preview_every: steps between two previews, 0 for none.
      engine: of the problem, which may compile already; a new one by default.
      tensorboard: folder for events, to follow the run in TensorBoard; none by default.

    Returns:
      The content of `run.json`; its `status` is "finished", or "stopped" after
      Ctrl-C.

    Raises:
      UserError: the folder holds something else, or another process works in it.
      OSError: it cannot be written; the same call goes on from the last state.
      NotFiniteError: after the last good state was saved.
    """
    identity = _identity(problem, settings)
    identities = multihost.exchange(identity)
    with multihost.together():
        _check_same(identities[0], identity)
    listed = _FILES + media.video_files(problem)
    new = {"settings": dict(settings), "identity": identity, "files": listed}
    with contextlib.ExitStack() as lock:

        def opened() -> dict[str, Any]:
            # refuses before anything is made
            if tensorboard:
                events.check(tensorboard, identity, overwrite)
            _held(folder, identity, overwrite)
            lock.enter_context(ownership.alone(folder))
            return _open(folder, new, overwrite)

        record = multihost.on_first(opened)
        if record["status"] == "finished":
            return multihost.on_first(lambda: _judged(folder, problem, record, judges))
        logged: Logged = _unlogged
        if tensorboard and multihost.first():
            logged = functools.partial(
                events.Events, tensorboard, identity, overwrite=overwrite
            )
        how = (save_every, preview_every, engine or Engine(problem), logged)
        return _run(folder, problem, record, judges, *how)


#: Opens the events of a run that goes on from a step.
Logged = Callable[[int], contextlib.AbstractContextManager[events.Events | None]]


def _unlogged(step: int) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _run(
    folder: Path,
    problem: Problem,
    record: dict[str, Any],
    judges: Mapping[str, Model],
    save_every: float,
    preview_every: int,
    engine: Engine,
    logged: Logged,
) -> dict[str, Any]:
    """Does the steps that are not done, and writes the results."""
    first = multihost.first()
    with multihost.together():
        if not (folder / "run.json").exists():
            raise UserError(
                f"out={str(folder)!r}: is not the folder of process 0; choose one on a"
                " disk that all processes share"
            )
        held = parallel.held(len(problem), parallel.all_devices())
        like = jax.eval_shape(lambda: problem.init_state(held)).replace(index=held)
        kept = states.restore_videos(folder / "state", like)
        start = 0 if kept is None else int(kept.step[0])
        record |= {"status": "running", "step": start}
        if first:
            metrics.keep(folder / "metrics.jsonl", start)
            files.write_json(folder / "run.json", record)
            previews.keep(folder / "previews.zip", start)
            page.write_page(folder, problem, record | {"judging": list(judges)})

    config, began = problem.config, time.monotonic()
    seconds_before, saved = record["seconds"], time.monotonic()
    last: Snapshot | None = None
    shown = Steps("synthesize", config.steps, start, shown=first)
    try:
        with shown as steps, interruptible() as stop, logged(start) as log:
            if start:
                steps.say(f"resuming {folder} at step {start}")
            engine.begin_compile(len(problem), start)
            placed = engine.place(problem.labels, problem.stimuli, kept)
            state = parallel.gather(placed[0], len(held)) if kept is None else kept
            if first and preview_every:
                _preview(folder, problem, record, judges, state)
            if log and not start:
                _log_videos(log, problem, 0, _first_videos(problem, state))
            for snapshot in engine.run(len(problem), *placed, start):
                length = len(snapshot.metrics["total"])
                due = preview_every and (
                    last is None or snapshot.step % preview_every < length
                )
                last = snapshot
                stop.begin_call()
                if first:
                    metrics.log(folder / "metrics.jsonl", problem, snapshot)
                steps.update(snapshot.step, _means(snapshot))
                done = snapshot.step == config.steps
                if first and due and not done:
                    now = record | {"step": snapshot.step}
                    _preview(folder, problem, now, judges, snapshot.state())
                if log:
                    for line in metrics.lines(problem, snapshot):
                        log.add_numbers(line["step"], metrics.means(line))
                    if due or done:
                        videos = _first_videos(problem, snapshot.state())
                        _log_videos(log, problem, snapshot.step, videos)
                late = time.monotonic() - saved > save_every
                stopping, saving = multihost.any_of(bool(stop), late)
                if stopping or done or saving:
                    final = snapshot.state()
                    with multihost.together():
                        states.save(folder / "state", snapshot.step, final)
                    saved = time.monotonic()
                if stopping:
                    break
    except NotFiniteError as error:
        last = error.snapshot
        with multihost.together():
            states.save(folder / "state", last.step, last.state())
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
        final = state
        record["status"] = "finished"
    if first and (lines := metrics.read(folder / "metrics.jsonl")):
        record["final"] = lines[-1]
    _write_results(folder, problem, final, record, judges)
    return record


def _check_same(first: dict[str, Any], identity: dict[str, Any]) -> None:
    if changed := ownership.differences(first, identity):
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
        with np.load(folder / "videos.npz") as held:
            videos = held["videos"]
        targets = problem.targets
        for role, model in counted("judge", new.items(), "models"):
            record["judges"][role] = evaluation.judge(model, videos, targets)
        page.write_page(folder, problem, record)
        files.write_json(folder / "run.json", record)
    return record


def _digests(problem: Problem) -> dict[str, str | None]:
    """Digests: the same path may hold other pixels or weights tomorrow."""
    verifier = problem.verifier
    return {
        "pixels of the stimuli": checkpoints.digest(problem.stimuli),
        "weights of the model": checkpoints.digest(problem.model.variables),
        "weights of the verifier": checkpoints.digest(verifier and verifier.variables),
    }


def check(
    folder: Path,
    problem: Problem,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
    tensorboard: Path | None = None,
) -> dict[str, Any] | None:
    """The content of `run.json` that `execute` would resume; None for a new run.

    Raises:
      UserError: the folder, or that for events, holds something else or cannot be
        written.
    """
    identity = _identity(problem, settings)
    if tensorboard and multihost.first():
        events.check(tensorboard, identity, overwrite)
    return _held(folder, identity, overwrite)


#: Settings that are recorded, and compared by their contents.
_BY_CONTENTS = ("stimulus", "model", "verifier", "pinned")


def _identity(problem: Problem, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that identifies a run, flat, as JSON would give it back."""
    compared = {k: v for k, v in settings.items() if k not in (*_BY_CONTENTS, "config")}
    compared |= settings.get("config", {}) | _digests(problem)
    return ownership.plain(compared)


def _held(
    folder: Path, identity: dict[str, Any], overwrite: bool
) -> dict[str, Any] | None:
    out = f"out={str(folder)!r}"
    if reason := checkpoints.unwritable(folder):
        raise UserError(f"{out}: {reason}; choose another folder")
    if not folder.exists():
        return None
    paths = folder.iterdir() if folder.is_dir() else [folder]
    names = [path.name for path in paths if path == folder or path.name[0] != "."]
    foreign = [name for name in names if name not in _CONTENTS]
    if names and (foreign or "run.json" not in names):
        what = f" (it holds {min(foreign)})" if foreign and folder.is_dir() else ""
        raise UserError(f"{out}: exists and is no run{what}; choose another folder")
    ownership.check_links(folder)
    if not names:
        return None
    record = _record(folder)
    if overwrite:
        if not record["files"]:
            what = "its run.json lists no files, so none of them is deleted"
            raise UserError(f"{out}: {what}; choose another folder")
        return None
    ownership.check_same(folder, record["identity"], identity)
    if record["status"] == "finished" and not arrays.has_videos(folder):
        record["status"] = "running"
    return record


def _record(folder: Path) -> dict[str, Any]:
    """The content of run.json."""
    try:
        found = schemas.read(
            folder / "run.json", schemas.RunRecord, "choose another folder"
        )
    except UserError as error:
        raise UserError(f"out={str(folder)!r}: {error}") from None
    return found.model_dump()


def _open(folder: Path, new: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    record_path = folder / "run.json"
    held = _held(folder, new["identity"], overwrite)
    if held is not None:
        return held | {"files": new["files"]}  # earlier versions listed none
    if overwrite and record_path.exists():
        _forget(folder)
    record = {
        "status": "running",
        "step": 0,
        **new,
        "versions": ownership.versions(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "seconds": 0.0,
    }
    files.write_json(record_path, record)
    return record


def _forget(folder: Path) -> None:
    """Deletes what run.json lists and the states; run.json is for the new run."""
    for name in map(str, _record(folder)["files"]):
        if name in _FILES[1:] or re.fullmatch(_VIDEO, name):
            (folder / name).unlink(missing_ok=True)
    for path in (folder / "state").glob("*"):
        if re.fullmatch(_STATE, path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for part in ("videos", "state"):
        with contextlib.suppress(OSError):  # there is none, or others use it too
            (folder / part).rmdir()


def _means(snapshot: Snapshot) -> dict[str, float]:
    """The mean over videos of every metric at the last step of the snapshot."""
    return {name: float(v[-1].mean()) for name, v in snapshot.metrics.items()}


#: Of which video the numbers of run.json are.
_OF = {
    "final": "the video of the last step, as that step saw it, changed at random",
    "judges": "the video after the last step: that of videos.npz, videos/, index.html",
}


def _preview(
    folder: Path,
    problem: Problem,
    record: dict[str, Any],
    judges: Mapping[str, Model],
    state: State,
) -> None:
    """Shows the first videos as they are now, and how far the run is."""
    videos = _first_videos(problem, state)
    media.write_preview(folder, problem, videos)
    page.add_preview(folder, problem, record["step"], videos)
    page.write_page(folder, problem, record | {"judging": list(judges)})


def _first_videos(problem: Problem, state: State) -> np.ndarray:
    few = jax.tree.map(lambda leaf: leaf[: previews.VIDEOS], state.parameters)
    return synthesis.as_pixels(problem, few)


def _log_videos(
    log: events.Events, problem: Problem, step: int, videos: np.ndarray
) -> None:
    names = render.file_names(problem.names)
    named = {f"videos/{n}": v for n, v in zip(names, videos, strict=False)}
    log.add_videos(step, named, problem.model.spec.fps)


def _write_results(
    folder: Path,
    problem: Problem,
    state: State,
    record: dict[str, Any],
    judges: Mapping[str, Model],
) -> None:
    """Writes videos and what judges see in them, and the record last."""
    record["of"] = _OF
    numbers = parallel.own(len(problem), parallel.all_devices())
    videos = synthesis.as_pixels(problem, state.parameters)[: len(numbers)]
    everything = arrays.write(folder, problem, videos)
    record["classes"] = problem.names
    with multihost.together():
        verdicts = {}
        if len(numbers):
            targets = [problem.targets[number] for number in numbers]
            first, asked = multihost.first(), judges.items()
            for role, model in counted("judge", asked, "models", shown=first):
                verdicts[role] = evaluation.judge(model, videos, targets)
    parts = multihost.exchange(verdicts)
    record["judges"] = {
        role: evaluation.joined([part[role] for part in parts if part])
        for role in judges
    }
    reason = render.can_write()
    with multihost.together():
        if not reason:
            media.write_videos(folder, problem, numbers, videos)
    with multihost.together():
        if multihost.first():
            if reason:
                record["videos_not_written"] = reason
            else:
                media.write_comparison(folder, problem, everything)
            page.write_page(folder, problem, record)
            files.write_json(folder / "run.json", record)
