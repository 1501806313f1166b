"""Random hostile files and words: a line, or the right values; never a trace.

Each group makes something good, changes it at random, and reads it as users do. A case
ends in a UserError of one line, or in what was written; nothing else is raised, no file
of another changes, no code runs, and `guard` holds. `-m heavy` tries many more cases
and shows a table.
"""

import collections
import contextlib
import csv
import dataclasses
import io
import json
import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import guard
import hypothesis
import jax
import numpy as np
import published
import pytest
from hypothesis import strategies as st
from mutations import (
    CHANGES,
    EDITS,
    NUMBERS,
    SHARE,
    STRANGE,
    TEXT,
    changed,
    edited,
    same,
)

from leaps_jax import Model, parametrizations, render, schemas
from leaps_jax.cli import train
from leaps_jax.config import Config
from leaps_jax.data.clips import read_clip
from leaps_jax.errors import UserError
from leaps_jax.runs import folder as runs
from leaps_jax.runs import gallery, jobs, metrics, ownership, results
from leaps_jax.runs.jobs import folder as job_folder
from leaps_jax.runs.jobs import status
from leaps_jax.runs.jobs import table as job_table
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import checkpoints
from leaps_jax.zoo import load as loading
from leaps_jax.zoo.conversion import sources

clip_files = pytest.importorskip("clip_files")

REFUSED, RIGHT, OTHER = "refused in one line", "read with right values", "read as other"


class Group(NamedTuple):
    """How to try one kind of input.

    Attributes:
      prepare: makes what is good in a folder, and returns what `check` needs.
      cases: a strategy of changes.
      check: `(folder, prepared, case) -> REFUSED | RIGHT | OTHER`; asserts the rest.
      few, many: how many cases there are in every run, and in a heavy one.
    """

    prepare: Callable[[Path], Any]
    cases: st.SearchStrategy
    check: Callable[[Path, Any, Any], str]
    few: int
    many: int


def read_or_refused(call: Callable, *arguments: Any) -> Any:
    """What a call returns, or None after a good line."""
    try:
        return call(*arguments)
    except UserError as error:
        check_line(str(error))
        return None


def check_line(text: str) -> None:
    assert text.isprintable() and 0 < len(text) <= 380, text


def written(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


# Files of JSON.


def checkpoint(folder: Path) -> dict[str, Any]:
    fields = {"frames": 4, "size": 32, "depth": 1, "width": 48, "stem": (4, 8)}
    module, spec = zoo.build("timesformer_small", ("left", "right"), **fields)
    shapes = zoo.variable_shapes(module)
    weights = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, "f4"), shapes)
    loading.save(Model(module, weights, spec), folder / "weights")
    facts = json.loads((folder / "weights" / "model.json").read_text())
    return {"facts": facts, "digest": checkpoints.digest(weights)}


def check_checkpoint(folder: Path, good: dict, changes: list) -> str:
    facts = changed(good["facts"], changes)
    written(folder / "weights" / "model.json", facts)
    reference = f"timesformer_small@{folder / 'weights'}"
    model = read_or_refused(loading.load_model, reference)
    if model is None:
        return REFUSED
    spec = dataclasses.asdict(model.spec)
    for key, value in facts["spec"].items():
        held = list(spec[key]) if isinstance(spec[key], tuple) else spec[key]
        assert same(held, value)
    assert checkpoints.digest(model.variables) == good["digest"]
    return RIGHT


def run(folder: Path) -> dict[str, Any]:
    videos = np.full((2, 2, 4, 4, 3), 0.5, np.float32)
    (folder / "run").mkdir()
    np.savez(folder / "run" / "videos.npz", videos=videos, stimuli=videos[:0])
    (folder / "run" / "videos").mkdir()
    for name in render.file_names(["left", "right"]):
        (folder / "run" / "videos" / f"{name}.mp4").touch()
    verdict = {"model": "x3d_xs", "correct": 1, "of": 2, "seen": ["left", "left"]}
    return {
        "status": "finished",
        "step": 8,
        "seconds": 1.5,
        "settings": {"model": "x3d_xs@w", "verifier": None, "frames": 4},
        "identity": {"steps": 8, "weights of the model": "0" * 64},
        "files": ["videos.npz", "videos/000_left.mp4"],
        "classes": ["left", "right"],
        "judges": {"self": verdict | {"confidence": [0.5, 1.0]}},
        "final": {"step": 8, "total": [0.5, 0.25]},
    }


def check_run(folder: Path, good: dict, changes: list) -> str:
    record, path = changed(good, changes), folder / "run"
    written(path / "run.json", record)
    found = read_or_refused(results.read, path)
    held = read_or_refused(runs._held, path, good["identity"], False)
    if found is not None:
        assert same(found["classes"], record["classes"])
        assert found["videos"].shape == (2, 2, 4, 4, 3)
    shown = read_or_refused(gallery.read, [path])
    if shown is not None:
        assert same([item.label for item in shown], record["classes"])
    if held is not None:
        assert same(held["identity"], good["identity"])
        kept = {key: held[key] for key in record}
        assert same(kept, record)
    return REFUSED if found is None or held is None else RIGHT


def records(folder: Path) -> dict[str, Any]:
    digest = "0" * 64
    return {
        "jobs": {"identity": {"steps": 8}, "weights": {"a@b": digest}, "versions": {}},
        "train": {
            "status": "running",
            "steps": 3,
            "seconds": 0.5,
            "identity": {"steps": 8},
            "recipe": {"batch": 2},
        },
        "shard": {
            "status": "running",
            "finished": 3,
            "batches": 2,
            "seconds": 1.5,
            "idle_share": 0.25,
            "running": 2,
            "workers": [
                {"worker": "0", "node": "a", "model": "x", "running": 2}
                | {"batches": 2, "rows": 3}
            ],
        },
        "metrics": {"step": 3, "total": [0.5], "raw": {"l2": [0.5]}, "weighted": {}},
        "index": {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}},
    }


def check_record(folder: Path, good: dict, case: tuple) -> str:
    kind, changes = case
    record = changed(good[kind], changes)
    if kind == "jobs":
        path = folder / "out" / "jobs.json"
        path.parent.mkdir(exist_ok=True)
        written(path, record)
        held = job_folder.Folder(path.parent, jobs.Shard(1, 1), good[kind]["identity"])
        noted = {"a@b": "0" * 64}
        read_or_refused(held.open, noted)
        declared = (path, record, schemas.JobsRecord, "replace it")
        found = read_or_refused(schemas.checked, *declared)
        wanted = record
        if found and not ownership.differences(found.identity, good[kind]["identity"]):
            wanted = record | {"weights": noted | record["weights"]}
        assert same(json.loads(path.read_text()), wanted)
    elif kind == "train":
        path = folder / ".training" / "record.json"
        path.parent.mkdir(exist_ok=True)
        written(path, record)
        found = read_or_refused(train._record, folder)
        assert found is None or same(found, record)
    elif kind == "shard":
        out = folder / "sharded"
        out.mkdir(exist_ok=True)
        written(out / "jobs.json", good["jobs"])
        written(out / "shard-1-of-1.json", record)
        found = read_or_refused(status.status, out)
        assert found is None or found.all.done == 0
    elif kind == "metrics":
        path = folder / "metrics.jsonl"
        path.write_text(f"{json.dumps(good[kind])}\n{json.dumps(record)}\n")
        first, *found = metrics.read(path)
        assert same(first, good[kind])
        assert not found or same(found[0], record)
        found = found or None
    else:
        (folder / "hf").mkdir(exist_ok=True)
        written(folder / "hf" / "model.safetensors.index.json", record)
        for name in ("x", "y"):
            tensors = {name: np.ones(3, np.float32)}
            (folder / "hf" / f"{name}.safetensors").write_bytes(safetensors(tensors))
        found = read_or_refused(sources.read, folder / "hf")
        if found is not None:
            assert all((value == 1).all() for value in found.values())
    return REFUSED if found is None else RIGHT


def raw(folder: Path) -> bytes:
    return json.dumps(run(folder)).encode()


def check_raw(folder: Path, good: bytes, edits: list) -> str:
    content = edited(good, edits)
    found = read_or_refused(
        schemas.parsed, "run.json", content, schemas.RunRecord, "replace it"
    )
    if found is None:
        return REFUSED
    assert same(found.model_dump(exclude_unset=True), json.loads(content))
    return RIGHT


# Weights.


def safetensors(tensors: dict[str, np.ndarray], header: Any = None) -> bytes:
    """A file as the library writes it; with another header, if given."""
    facts, data = {}, b""
    for name, tensor in tensors.items():
        start, data = len(data), data + tensor.tobytes()
        shape = list(tensor.shape)
        facts[name] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [start, len(data)],
        }
    head = json.dumps(facts if header is None else header).encode()
    return struct.pack("<Q", len(head)) + head + data


TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.linspace(0, 1, 4, dtype=np.float32),
}


def check_safetensors(folder: Path, _: Any, case: tuple) -> str:
    changes, edits = case
    plain = safetensors(TENSORS)
    length = struct.unpack("<Q", plain[:8])[0]
    header = json.loads(plain[8 : 8 + length])
    content = edited(safetensors(TENSORS, changed(header, changes)), edits)
    path = folder / "x.safetensors"
    path.write_bytes(content)
    found = read_or_refused(sources.read, path)
    if found is None:
        return REFUSED
    # another reader of the same few lines of format
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    kinds = {"F32": "<f4", "I32": "<i4", "F16": "<f2", "I64": "<i8", "F64": "<f8"}
    for name, value in found.items():
        entry = header[name]
        start, end = entry["data_offsets"]
        assert list(value.shape) == entry["shape"]
        if entry["dtype"] in kinds:
            held = np.frombuffer(data[start:end], kinds[entry["dtype"]])
            wanted = held.reshape(value.shape).astype(value.dtype)
            np.testing.assert_array_equal(value, wanted)
    return RIGHT


class Calls:
    """Asks a pickle to call something."""

    def __init__(self, what: tuple):
        self._what = what

    def __reduce__(self):
        return self._what


def code(folder: Path) -> Path:
    return folder / "proof"


#: Harmless in a test, were they run: all would leave the file `proof`, or raise.
ASKED = [
    lambda proof: (os.system, (f"touch {proof}",)),
    lambda proof: (eval, (f"open({str(proof)!r}, 'w')",)),
    lambda proof: (exec, (f"open({str(proof)!r}, 'w')",)),
    lambda proof: (open, (str(proof), "w")),
    lambda proof: (Path.touch, (Path(proof),)),
    lambda proof: (os.mkdir, (str(proof),)),
    lambda proof: (subprocess.Popen, (["touch", str(proof)],)),
    lambda proof: (getattr, (Path, "touch")),
    lambda proof: (map, (os.mkdir, [str(proof)])),
    lambda proof: (np.load, (str(proof),)),
    lambda proof: (np.fromfile, (str(proof),)),
    lambda proof: (bytearray, (10**12,)),
]


def nested(value: Any, wrappers: list[str]) -> Any:
    for wrapper in wrappers:
        value = {"list": [value], "tuple": (1, value)}.get(wrapper, {wrapper: value})
    return value


def check_code(folder: Path, proof: Path, case: tuple) -> str:
    number, wrappers, protocol, kind, edits = case
    asked = ASKED[number % len(ASKED)](proof)
    content = {"state_dict": {"a": nested(Calls(asked), wrappers)}}
    try:
        pickled = pickle.dumps(content, protocol)
    except Exception:  # an old protocol lacks some
        pickled = pickle.dumps(content, 4)
    path = folder / f"x.{kind}"
    if kind == "pth":
        published.write(path, edited(pickled, edits), {"0": bytes(16)})
    else:
        path.write_bytes(edited(pickled, edits))
    found = read_or_refused(sources.read, path)
    assert not proof.exists(), "code was run"
    assert found is None or edits, "what asks for code was read"
    return REFUSED if found is None else RIGHT


def torch_file(folder: Path) -> bytes:
    published.save(folder / "x.pth", TENSORS, "model_state")
    return (folder / "x.pth").read_bytes()


def check_torch(folder: Path, good: bytes, edits: list) -> str:
    path = folder / "x.pth"
    path.write_bytes(edited(good, edits))
    found = read_or_refused(sources.read, path)
    if found is None:
        return REFUSED
    for name, value in found.items():  # all of a zip has checksums
        np.testing.assert_array_equal(value, TENSORS[name])
    return RIGHT


# Words.

CELLS = st.one_of(TEXT, STRANGE, NUMBERS.map(str), st.sampled_from(["0", "7", "jack"]))
ROWS = st.lists(
    st.dictionaries(st.sampled_from(jobs.COLUMNS), CELLS, max_size=6), max_size=6
)


def check_table(folder: Path, _: Any, case: tuple) -> str:
    rows, edits = case
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, jobs.COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    content = edited(text.getvalue().encode("utf-8", "surrogatepass"), edits)
    path = folder / "jobs.csv"
    path.write_bytes(content)
    failed, shard = [], jobs.Shard(1, 1)
    found = read_or_refused(job_table.survey, path)
    if found is None:
        return REFUSED
    read = list(job_table.rows(path, shard, lambda *of: failed.append(of)))
    assert sorted([row.number for row in read] + [of[0] for of in failed]) == list(
        range(found.rows)
    )
    for _, _, reason in failed:
        check_line(reason)
    for row in read:
        assert 1 <= row.copies <= 1000 and 0 <= row.seed < 2**32
        assert row.model and row.label
        if not edits and "\ud800" not in str(rows):
            given = rows[row.number]
            for name in ("model", "label", "verifier", "stimulus"):
                wanted = given.get(name, "").strip()
                assert getattr(row, name) == os.fsdecode(
                    wanted.encode("utf-8", "surrogatepass")
                ), name
    return RIGHT


FIELDS = [field.name for field in dataclasses.fields(Config)]
VALUES = st.one_of(NUMBERS.map(str), STRANGE, TEXT, st.sampled_from(["true", "pixels"]))


def check_set(folder: Path, _: Any, case: list) -> str:
    words = [f"{name}={value}" for name, value in case]

    def parsed() -> Config:
        config = Config().updated(words)
        parametrizations.from_config(config)
        return config

    config = read_or_refused(parsed)
    if config is None:
        return REFUSED
    for name, value in dict(case).items():
        held = getattr(config, name)
        if isinstance(held, bool):
            assert value.lower() in ("true", "1", "yes", "false", "0", "no")
        else:
            assert held == type(held)(value)
        assert isinstance(held, str) or abs(held) <= 1e30
    return RIGHT


# Clips.

#: By container: its format of FFmpeg, and a codec that it can hold.
CONTAINERS = {
    "mp4": "libx264",
    "mov": "libx264",
    "matroska": "libx264",
    "webm": "libvpx-vp9",
    "avi": "mpeg4",
    "gif": "gif",
    "mpegts": "libx264",
    "mpeg": "mpeg2video",
    "vob": "mpeg2video",
    "flv": "flv",
    "asf": "wmv2",
    "ogg": "libtheora",
    "3gp": "mpeg4",
    "3g2": "mpeg4",
    "f4v": "libx264",
    "ipod": "libx264",
    "ismv": "libx264",
    "psp": "libx264",
    "svcd": "mpeg2video",
    "dvd": "mpeg2video",
}


def clips(folder: Path) -> dict[str, tuple[bytes, np.ndarray]]:
    """By container, a file and its pixels; those that FFmpeg here cannot write lack."""
    video = clip_files.circle(8, 64, 96)
    clip_files.write(folder / "whole.mkv", video)
    found = {}
    for container, codec in CONTAINERS.items():
        path = folder / "clip.mp4"
        command = [clip_files.imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
        command += ["-i", str(folder / "whole.mkv"), "-c:v", codec, "-q:v", "3"]
        command += ["-f", container, str(path)]
        if subprocess.run(command, capture_output=True).returncode == 0:
            try:
                found[container] = (path.read_bytes(), read_clip(path))
            except UserError as error:
                raise AssertionError(f"{container}: {error}") from None
        path.unlink(missing_ok=True)
    assert len(found) >= 8
    return found


def check_clip(folder: Path, good: dict, case: tuple) -> str:
    share, name, edits = case
    names = list(good)
    content, pixels = good[names[int(share * len(names))]]
    with contextlib.chdir(folder):
        path = Path(name)  # of an address, that of a file in some folders
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(edited(content, edits))
        found = read_or_refused(read_clip, name)
    if found is None:
        assert edits, "a whole clip was refused"
        return REFUSED
    assert found.dtype == np.uint8 and found.ndim == 4 and found.shape[-1] == 3
    return RIGHT if np.array_equal(found, pixels) else OTHER


def check_array(folder: Path, good: bytes, edits: list) -> str:
    path = folder / "clip.npz"
    path.write_bytes(edited(good, edits))
    found = read_or_refused(read_clip, path)
    if found is None:
        return REFUSED
    np.testing.assert_array_equal(found, np.full((3, 4, 4, 3), 7))
    return RIGHT


def array_file(folder: Path) -> bytes:
    np.savez(folder / "clip.npz", video=np.full((3, 4, 4, 3), 7, np.uint8))
    return (folder / "clip.npz").read_bytes()


def nothing(folder: Path) -> None:
    return None


KINDS = st.sampled_from(["jobs", "shard", "train", "metrics", "index"])
WRAPPERS = st.lists(
    st.sampled_from(["list", "tuple", "model", "a", "blobs"]), max_size=5
)
CODE = (
    st.integers(0, 99),
    WRAPPERS,
    st.integers(0, 5),
    st.sampled_from(["pth", "pkl", "pt"]),
)
PLACES = st.just("clip.mp4") | st.deferred(lambda: st.sampled_from(guard.files))
GROUPS = {
    "model.json": Group(checkpoint, CHANGES, check_checkpoint, 15, 250),
    "run.json": Group(run, CHANGES, check_run, 15, 300),
    "other records": Group(records, st.tuples(KINDS, CHANGES), check_record, 20, 300),
    "bytes of JSON": Group(raw, EDITS, check_raw, 10, 150),
    "safetensors": Group(
        nothing, st.tuples(CHANGES, EDITS), check_safetensors, 10, 150
    ),
    "safetensors headers": Group(
        nothing, st.tuples(CHANGES, st.just([])), check_safetensors, 10, 150
    ),
    "pickles with code": Group(
        code,
        st.tuples(*CODE, st.just([])),
        check_code,
        15,
        150,
    ),
    "damaged code": Group(
        code,
        st.tuples(*CODE, EDITS),
        check_code,
        5,
        150,
    ),
    "torch files": Group(torch_file, EDITS, check_torch, 10, 150),
    "tables": Group(nothing, st.tuples(ROWS, EDITS), check_table, 10, 150),
    "whole tables": Group(nothing, st.tuples(ROWS, st.just([])), check_table, 10, 150),
    "settings": Group(
        nothing,
        st.lists(st.tuples(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=3),
        check_set,
        15,
        250,
    ),
    "array files": Group(array_file, EDITS, check_array, 10, 100),
    "clips": Group(clips, st.tuples(SHARE, PLACES, EDITS), check_clip, 20, 400),
}


def beside(own: Path) -> dict[str, tuple[bytes, int]]:
    """All files near a folder but not in it: their content, and when it changed."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(own.parent.rglob("*"))
        if path.is_file() and not path.is_relative_to(own)
    }


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder for a group; the home and the current one are beside it."""
    for name in ("own", "home", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").write_text("precious")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "own"


def try_cases(name: str, group: Group, cases: int, own: Path, counts: dict) -> None:
    """Tries cases; what is beside the folder of the group stays as it is."""
    row = counts.setdefault(name, collections.Counter())
    good, before = group.prepare(own), beside(own)

    @hypothesis.settings(
        max_examples=cases,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(group.cases)
    def check(case):
        with guard.guarded():
            found = group.check(own, good, case)
        row["cases"] += 1
        row[found] += 1

    check()
    assert beside(own) == before


@pytest.mark.parametrize("name", GROUPS)
def test_hostile_cases(folder, counts, name):
    try_cases(name, GROUPS[name], GROUPS[name].few, folder, counts)


@pytest.mark.heavy
@pytest.mark.parametrize("name", GROUPS)
def test_many_hostile_cases(folder, counts, name):
    try_cases(name, GROUPS[name], GROUPS[name].many, folder, counts)
