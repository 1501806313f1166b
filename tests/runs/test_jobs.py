"""Tables of jobs: every good row once, whatever batch, shard, kill or bad row."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_tiny

from leaps_jax import Config, UserError, objectives, synthesis, update
from leaps_jax.cli.main import main
from leaps_jax.data import clips as clips_module
from leaps_jax.data.clips import load_stimulus
from leaps_jax.progress import Stop
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import batches, folder, groups, journal, pipeline
from leaps_jax.runtime import engine, parallel
from leaps_jax.zoo import load as loading
from leaps_jax.zoo import references

TESTS = Path(__file__).parent.parent
CONFIG = Config(steps=6, steps_per_call=3, noise=0.3)
SETTINGS = jobs.Settings("leaps", CONFIG)
FINGERPRINT = references.fingerprint


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Keeps compiled steps from test to test and for other processes."""
    kept = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in kept}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in kept.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def models(monkeypatch):
    """`tiny@0` and so on are tiny networks; counts how often a step is traced."""
    made, traced = {}, []

    def load(reference, **_):
        name, _, seed = reference.partition("@")
        if name != "tiny":
            raise UserError(f"model={reference!r}: unknown; write tiny@0")
        return made.setdefault(seed, make_tiny(int(seed)))

    make = update.make_update_step

    def counting(setup, *rest):
        step = make(setup, *rest)

        def counted(*of):
            traced.append(setup.model)
            return step(*of)

        return counted

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(references, "fingerprint", lambda reference: reference)
    monkeypatch.setattr(update, "make_update_step", counting)
    return traced


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(4):
        frames = np.random.default_rng(i).integers(0, 255, (8, 32, 40, 3), np.uint8)
        np.savez(folder / f"{i}.npz", video=frames)
    return folder


def write(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, jobs.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def table(tmp_path, clips):
    """Seven rows, eleven videos."""
    rows = [
        {"model": "tiny@0", "stimulus": clips / f"{i % 4}.npz", "label": i % 5}
        for i in range(7)
    ]
    rows[1] |= {"copies": 4, "seed": 7}
    rows[4] |= {"copies": 2}
    return write(tmp_path / "jobs.csv", rows)


def results(out: Path) -> dict[int, dict[str, np.ndarray]]:
    found = {}
    for path in sorted((out / "rows").rglob("*.npz")):
        assert path.parent.name == f"{int(path.stem) // 1000:03d}"
        with np.load(path) as file:
            found[int(path.stem)] = dict(file)
    return found


def files(out: Path) -> dict[str, tuple[int, int]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (out / "rows").rglob("*.npz")
    }


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return np.abs(a.astype(int) - b.astype(int)).max()


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_row_is_what_one_synthesis_with_its_settings_is(
    tmp_path, models, table, clips, batch
):
    record = jobs.execute(table, tmp_path / "out", SETTINGS, batch)
    assert (record["finished"], record["failed"]) == (7, 0)
    assert record["batches"] == -(-11 // batch)
    assert len(models) == 1, "every batch has the same shape"
    found = results(tmp_path / "out")
    assert list(found) == list(range(7))
    row = found[1]
    assert row["videos"].shape == (4, 4, 32, 32, 3) and row["videos"].dtype == np.uint8
    assert row["labels"].tolist() == [1] * 4 and row["label"] == "1"
    assert row["stimulus"] == str(clips / "1.npz") and row["seed"] == 7
    assert found[5]["seed"] == 5, "by default, its number"
    assert not os.listdir(tmp_path / "out" / "parts")

    tiny = make_tiny(0)
    stimulus = load_stimulus(clips / "1.npz", tiny.spec)
    config = dataclasses.replace(CONFIG, seed=7)
    problem = synthesis.prepare(tiny, stimulus[None], [1], config=config).repeated(4)
    *_, last = synthesis.iterate(problem)
    pixels = synthesis.best_pixels(problem, last.state())
    assert difference(np.rint(pixels * 255), row["videos"]) <= 1
    assert difference(row["videos"][0], row["videos"][1]) > 50
    total = row["final"][:, row["terms"].tolist().index("total")]
    np.testing.assert_allclose(total, last.metrics["total"][-1], rtol=1e-3)
    np.testing.assert_allclose(row["loss"], last.state().best_loss, rtol=1e-3)


def test_rows_of_several_models_and_verifiers(tmp_path, models, clips):
    """Each kind fills batches of its own, compiled once, also where kinds alternate."""
    kinds = [("tiny@0", ""), ("tiny@1", ""), ("tiny@0", "tiny@1")]
    rows = [
        {"model": m, "verifier": v, "stimulus": clips / "0.npz", "label": "run"}
        for _ in range(4)
        for m, v in kinds
    ]
    table = write(tmp_path / "jobs.csv", rows)
    record = jobs.execute(table, tmp_path / "out", SETTINGS, 4)
    assert record["batches"] == record["finished"] / 4 == 3
    assert len(models) == 3
    for number, row in results(tmp_path / "out").items():
        assert (row["model"], row["verifier"]) == kinds[number % 3]
        assert ("diversity" in row["terms"]) == (number % 3 == 2)
        assert row["labels"].tolist() == [3]


def test_more_kinds_than_fit_in_memory(tmp_path, models, clips, monkeypatch):
    monkeypatch.setattr(groups, "OPEN", 2)
    monkeypatch.setattr(batches, "OPEN", 2)
    rows = [
        {"model": f"tiny@{i % 3}", "stimulus": clips / "0.npz", "label": 0}
        for i in range(6)
    ]
    table = write(tmp_path / "jobs.csv", rows)
    record = jobs.execute(table, tmp_path / "out", SETTINGS, 2)
    assert record["finished"] == 6 and len(results(tmp_path / "out")) == 6


def test_shards_part_the_rows(tmp_path, models, table):
    jobs.execute(table, tmp_path / "whole", SETTINGS, 2)
    for number in (1, 2, 3):
        before = files(tmp_path / "out") if number > 1 else {}
        shard = jobs.Shard(number, 3)
        record = jobs.execute(table, tmp_path / "out", SETTINGS, 2, shard)
        after = files(tmp_path / "out")
        assert before.items() <= after.items()
        new = {int(name[:6]) for name in after.keys() - before.keys()}
        assert new == {k for k in range(7) if k % 3 == number - 1}
        assert record["rows"] == record["finished"] == len(new)
    whole, parts = results(tmp_path / "whole"), results(tmp_path / "out")
    for number, row in whole.items():
        assert difference(row["videos"], parts[number]["videos"]) <= 1


def run(table: Path, out: Path, *words: object) -> int:
    words = ("synthesize", "--jobs", table, "--out", out, "--steps", 2, *words)
    return main([str(word) for word in words])


@pytest.mark.parametrize("words", ["--shard 2/3", "--process 1 --processes 3"])
def test_the_command_does_its_shard(tmp_path, models, table, words):
    out = tmp_path / "out"
    assert run(table, out, *words.split()) == 0
    assert sorted(results(out)) == [1, 4] and (out / "shard-2-of-3.json").exists()


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_no_shard(text):
    with pytest.raises(UserError, match="write i/n"):
        jobs.Shard.parse(text)


# Rows that cannot be done.

BAD = {
    "no model": ({"model": ""}, "model='': missing"),
    "another model": ({"model": "tine@0"}, "model='tine@0': unknown"),
    "no label": ({"label": " "}, "label='': missing"),
    "another label": ({"label": "runn"}, "did you mean run?"),
    "no number": ({"label": "--5"}, "label='--5': not a class"),
    "no stimulus": ({"stimulus": ""}, "stimulus='': missing"),
    "another stimulus": ({"stimulus": "no.npz"}, "no such file"),
    "a broken stimulus": ({"stimulus": __file__}, "not a clip's extension"),
    "many stimuli": ({"stimulus": "{clips}"}, "holds 4 clips"),
    "copies": ({"copies": "two"}, "copies='two': must be a whole number from 1"),
    "no copies": ({"copies": 0}, "copies='0': must be"),
    "seed": ({"seed": 2**32}, "seed='4294967296': must be a whole number from 0"),
    "a long seed": ({"seed": "9" * 5000}, "must be a whole number from 0"),
    "an open comma": ({"seed": "1", None: "2"}, "more fields than the 6 columns"),
}


def test_bad_rows_are_reported_and_the_others_done(
    tmp_path, models, clips, capsys, monkeypatch
):
    monkeypatch.setattr(journal, "SHOWN", 5)
    good = {"model": "tiny@0", "stimulus": str(clips / "0.npz"), "label": "run"}
    rows = [good]
    for change, _ in BAD.values():
        rows += [good | change, good]
    table = tmp_path / "jobs.csv"
    with table.open("w") as file:
        file.write("model,verifier,stimulus,label,copies,seed\n")
        for row in rows:
            extra = [row[None]] if None in row else []
            values = [str(row.get(name, "")) for name in jobs.COLUMNS] + extra
            file.write(",".join(values).format(clips=clips) + "\n")
    assert run(table, tmp_path / "out", "--batch", 4) == 1
    err = capsys.readouterr().err
    assert sum(line.startswith("line ") for line in err.splitlines()) == 5
    assert f"{len(BAD)} rows failed" in err and "failed-1-of-1.jsonl" in err
    found = (tmp_path / "out" / "failed-1-of-1.jsonl").read_text().splitlines()
    found = {line["row"]: line for line in map(json.loads, found)}
    assert sorted(found) == list(range(1, len(rows), 2))
    for (_, expected), row in zip(BAD.values(), sorted(found), strict=True):
        assert expected in found[row]["error"] and found[row]["line"] == row + 2
        assert "\n" not in found[row]["error"]
    assert sorted(results(tmp_path / "out")) == list(range(0, len(rows), 2))


def test_a_row_that_is_not_finite_fails_alone(tmp_path, models, clips, monkeypatch):
    def explode(context):
        bad = (context.labels == 3) * jnp.square(context.video).mean((1, 2, 3, 4))
        return jnp.log(1 - 1e6 * bad)

    def method(config):
        return objectives.cross_entropy() + objectives.term("explosive", explode)

    monkeypatch.setitem(objectives.METHODS, "explosive", method)
    rows = [{"model": "tiny@0", "label": i, "copies": 2} for i in (0, 3, 1, 2)]
    table = write(tmp_path / "jobs.csv", rows)
    settings = jobs.Settings("explosive", CONFIG)
    record = jobs.execute(table, tmp_path / "out", settings, 3)
    assert (record["finished"], record["failed"]) == (3, 1)
    assert "explosive" in record["errors"][0] and "line 3" in record["errors"][0]
    assert sorted(results(tmp_path / "out")) == [0, 2, 3]


FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\n...")


@pytest.mark.parametrize(
    "where, error, told",
    [
        ("compile", FULL, "lower --batch"),
        ("start", FULL, "lower --batch"),
        ("start", ValueError("no such axis\n..."), "ValueError: no such axis"),
    ],
)
def test_a_model_of_no_use_fails_alone(
    where, error, told, tmp_path, models, clips, monkeypatch
):
    function = getattr(engine.Engine, where)

    def failing(engine, *args, **options):
        if engine.setup.model.variables is loading.load_model("tiny@0").variables:
            raise error
        return function(engine, *args, **options)

    monkeypatch.setattr(engine.Engine, where, failing)
    rows = [
        {"model": f"tiny@{i % 2}", "stimulus": clips / "0.npz", "label": 0}
        for i in range(8)
    ]
    table = write(tmp_path / "jobs.csv", rows)
    record = jobs.execute(table, tmp_path / "out", SETTINGS, 2)
    assert (record["finished"], record["failed"]) == (4, 4)
    assert told in record["errors"][0]


# Tables and folders that are refused.

HEAD = "model,verifier,stimulus,label,copies,seed\n"
ROW = "a@b,,c,run,,1\n"
REFUSED = {
    "no file": (None, {}, ["jobs=", "cannot be read"]),
    "empty": ("", {}, ["is empty", "model,verifier"]),
    "no rows": (HEAD, {}, ["no rows"]),
    "no header": ("tiny@0,,clip.npz,run,,\n", {}, ["column 'tiny@0' is unknown"]),
    "column": ("model,label,seeds\n", {}, ["'seeds'", "did you mean seed?"]),
    "twice": ("model,label,label\n", {}, ["two columns", "'label'"]),
    "repeated": (
        HEAD + ROW + ROW.replace("c", "d") + ROW,
        {},
        ["line 4 repeats line 2"],
    ),
    "with copies": (HEAD + ROW + "a@b,,c,run,2,1\n", {}, ["line 3 repeats line 2"]),
    "by its number": (HEAD + ROW + "a@b,,c,run,,\n", {}, ["line 3 repeats line 2"]),
    "an open quote": (HEAD + 'tiny@0,,"a,run,,\n', {}, ["line 1", "open quote"]),
    "model": (HEAD, {"model": "tiny@0"}, ["--model", "not allowed with"]),
    "label": (HEAD, {"label": "run"}, ["--label", "make it a column"]),
    "stimulus": (HEAD, {"stimulus": "a"}, ["--stimulus", "make it a column"]),
    "verifier": (HEAD, {"verifier": "a"}, ["--verifier", "make it a column"]),
    "copies": (HEAD, {"copies": 2}, ["--copies", "make it a column"]),
    "seed": (HEAD, {"seed": 0}, ["--seed", "make it a column"]),
    "set seed": (HEAD, {"set": "seed=1"}, ["--set seed", "make it a column"]),
    "overwrite": (HEAD, {"overwrite": None}, ["--overwrite", "another folder"]),
    "coordinator": (HEAD, {"coordinator": "a:1"}, ["--coordinator", "leave it out"]),
    "process": (HEAD, {"processes": 2, "process": 2}, ["shard=3/2", "from 1 to n"]),
    "judge": (HEAD, {"judge": "a"}, ["--judge", "leave it out"]),
    "batch": (HEAD, {"batch": 0}, ["batch=0", "at least 1"]),
    "shard": (HEAD, {"shard": "0/3"}, ["shard=0/3", "from 1 to n"]),
    "short": (HEAD, {"short": "cut"}, ["short='cut'", "refuse or loop"]),
    "dtype": (HEAD, {"dtype": "int8"}, ["dtype=int8", "float32 or bfloat16"]),
    "size": (HEAD, {"size": 0}, ["size=0", "at least 1"]),
    "method": (HEAD, {"method": "leap"}, ["method='leap'", "did you mean leaps?"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, capsys, case):
    text, options, expected = REFUSED[case]
    if text is not None:
        (tmp_path / "jobs.csv").write_text(text)
    words = ["synthesize", "--jobs", tmp_path / "jobs.csv", "--out", tmp_path / "out"]
    for name, value in options.items():
        words += [f"--{name}"] + ([] if value is None else [value])
    try:
        code = main([str(word) for word in words])
    except SystemExit as error:
        code = error.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and all(word in line for word in expected), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["batch", "shard"])
def test_only_with_a_table(capsys, tmp_path, name):
    words = ["synthesize", "--model", "a@b", "--out", str(tmp_path / "out")]
    assert main([*words, f"--{name}", "1"]) == 2
    assert "is for --jobs" in capsys.readouterr().err


def test_a_folder_of_another_run_is_refused(tmp_path, models, table):
    out = tmp_path / "out"
    jobs.execute(table, out, SETTINGS, 4)
    before = files(out)
    again = jobs.execute(table, out, SETTINGS, 2)
    assert (again["done_before"], again["finished"]) == (7, 0)
    other = dataclasses.replace(CONFIG, steps=7)
    other = jobs.Settings("leaps", other, short="loop")
    with pytest.raises(UserError, match=r"differs in short, steps\)"):
        jobs.execute(table, out, other, 4)
    table.write_text(table.read_text() + "tiny@0,,,run,,\n")
    with pytest.raises(UserError, match=r"differs in table\)"):
        jobs.execute(table, out, SETTINGS, 4)
    with pytest.raises(UserError, match="exists and is no run"):
        jobs.execute(table, TESTS, SETTINGS, 4)
    assert files(out) == before


@pytest.fixture
def weights(tmp_path, models, monkeypatch) -> Path:
    """A file of weights, of which every reference with its path is `tiny@0`."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.json").write_text("{}")
    (tmp_path / "weights" / "variables").write_bytes(b"one")
    tiny = loading.load_model("tiny@0")
    monkeypatch.setattr(loading, "load_model", lambda reference, **_: tiny)
    monkeypatch.setattr(references, "fingerprint", FINGERPRINT)
    return tmp_path / "weights" / "variables"


@pytest.mark.parametrize("argument", ["model", "verifier"])
def test_a_run_goes_on_with_its_weights_alone(tmp_path, weights, clips, argument):
    """The folder of the weights, not its name, decides."""
    other = tmp_path / "other"
    shutil.copytree(weights.parent, other)
    row = {"model": f"x3d_xs@{other}", "verifier": f"x3d_s@{other}", "label": 0}
    name = row[argument] = f"x3d_xs@{weights.parent}"
    row |= {"stimulus": clips / "0.npz"}
    table, out = write(tmp_path / "jobs.csv", [row, row]), tmp_path / "out"
    assert jobs.execute(table, out, SETTINGS, 2, jobs.Shard(1, 2))["finished"] == 1
    weights.write_bytes(b"two")
    before = files(out)
    for shard in (jobs.Shard(1, 2), jobs.Shard(2, 2)):
        with pytest.raises(UserError) as caught:
            jobs.execute(table, out, SETTINGS, 2, shard)
        text = str(caught.value)
        assert f"(it differs in weights of {name})" in text and "\n" not in text
        assert "choose another folder, or put these weights back" in text
    assert files(out) == before
    weights.write_bytes(b"one")
    assert jobs.execute(table, out, SETTINGS, 2, jobs.Shard(2, 2))["finished"] == 1


def test_weights_that_change_while_a_run_goes_on(tmp_path, weights, monkeypatch):
    tiny = loading.load_model("any")

    def late(reference, **_):
        weights.write_bytes(b"two")
        return tiny

    monkeypatch.setattr(loading, "load_model", late)
    row = {"model": f"x3d_xs@{weights.parent}", "label": 0}
    table, out = write(tmp_path / "jobs.csv", [row]), tmp_path / "out"
    settings = jobs.Settings("activation_maximization", CONFIG)
    record = jobs.execute(table, out, settings, 2)
    assert record["failed"] == 1 and "weights of x3d_xs" in record["errors"][0]
    assert not results(out)


def test_weights_that_come_later(tmp_path, weights):
    row = {"model": f"x3d_xs@{tmp_path / 'late'}", "label": 0}
    table, out = write(tmp_path / "jobs.csv", [row]), tmp_path / "out"
    settings = jobs.Settings("activation_maximization", CONFIG)
    assert jobs.execute(table, out, settings, 2)["failed"] == 1
    weights.parent.rename(tmp_path / "late")
    assert jobs.execute(table, out, settings, 2)["finished"] == 1
    (tmp_path / "late" / "variables").write_bytes(b"two")
    with pytest.raises(UserError, match="differs in weights of x3d_xs@"):
        jobs.execute(table, out, settings, 2)


def test_fingerprint(tmp_path):
    shipped = references.fingerprint("x3d_xs@actions")
    copy = tmp_path / "copy"
    shutil.copytree(references.shipped("x3d_xs")["actions"], copy)
    assert references.fingerprint(f"x3d_xs@{copy}") == shipped
    file = max(copy.rglob("*"), key=lambda path: path.stat().st_size)
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert references.fingerprint(f"x3d_xs@{copy}") != shipped
    (tmp_path / "x3d.pyth").write_bytes(b"any")
    assert references.fingerprint(f"x3d_xs@{tmp_path / 'x3d.pyth'}") != shipped
    for reference in ("x3d_xs", "x3d_xs@none", "none@actions", ""):
        with pytest.raises(UserError):
            references.fingerprint(reference)


def test_a_row_is_written_once_and_whole(tmp_path, monkeypatch):
    held = folder.Folder(tmp_path, jobs.Shard(1, 1), {})
    held.open({})
    row = jobs.Row(0, 2, "a@b", "", "", "run", 2, 0)

    def broken(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    arrays = {"videos": np.zeros((2, 1, 1, 1, 3), np.uint8)}
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", broken)
        for copies in ([0, 1], [0]):
            with pytest.raises(OSError):
                held.add(row, copies, arrays, [])
    assert not files(tmp_path) and held.missing(row) == [0, 1]
    assert held.add(row, [0, 1], arrays, [])
    before = files(tmp_path)
    assert held.add(row, [0, 1], {"videos": arrays["videos"] + 1}, [])
    assert files(tmp_path) == before and not results(tmp_path)[0]["videos"].any()


def test_copies_that_were_written_are_not_made_again(tmp_path):
    row = jobs.Row(7, 2, "a@b", "", "", "run", 5, 0)
    videos = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1, 1)
    for copies, missing in (([1], [0, 1, 2, 3, 4]), ([0, 3], [0, 2, 3, 4])):
        held = folder.Folder(tmp_path, jobs.Shard(1, 1), {})
        held.open({})  # as a run does that was killed
        assert held.missing(row) == missing and not held.is_done(7)
        assert not held.add(row, copies, {"videos": videos[copies]}, ["total"])
    held = folder.Folder(tmp_path, jobs.Shard(1, 1), {})
    held.open({})
    assert held.missing(row) == [2, 4]
    assert held.add(row, [2, 4], {"videos": videos[[2, 4]]}, ["total"])
    assert results(tmp_path)[7]["videos"].ravel().tolist() == [0, 1, 2, 3, 4]
    assert not os.listdir(tmp_path / "parts")


def test_damaged_parts_of_a_row_are_made_again(tmp_path):
    row = jobs.Row(7, 2, "a@b", "", "", "run", 4, 0)
    videos = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1, 1)

    def opened():
        held = folder.Folder(tmp_path, jobs.Shard(1, 1), {})
        held.open({})
        return held

    for copies in ([0], [2]):
        assert not opened().add(row, copies, {"videos": videos[copies]}, ["total"])
    parts = tmp_path / "parts" / "000007"
    (parts / "a-b.npz").write_bytes(b"another's")
    whole = (parts / "000002-000002.npz").read_bytes()
    for content in (b"", b"PK", whole[:100], whole[:150] + b"?" + whole[151:]):
        (parts / "000002-000002.npz").write_bytes(content)
        assert opened().missing(row) == [1, 2, 3]
        assert not (parts / "000002-000002.npz").exists()
    held = opened()
    assert held.missing(row) == [1, 2, 3]
    assert held.add(row, [1, 2, 3], {"videos": videos[[1, 2, 3]]}, ["total"])
    assert results(tmp_path)[7]["videos"].ravel().tolist() == [0, 1, 2, 3]


def test_several_clips_are_decoded_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    both = threading.Barrier(2, timeout=30)

    def decode(row):
        both.wait()
        return row.number

    rows = [jobs.Row(i, i + 2, "a@b", "", "c", "0", 1, 0) for i in range(6)]
    held = folder.Folder(tmp_path, jobs.Shard(1, 1), {})
    group = SimpleNamespace(model=make_tiny(0), primed=True, decode=decode)
    ready = batches.decoded(
        [(row, [0]) for row in rows],
        SimpleNamespace(of=lambda row: group),
        journal.Journal(held),
    )
    assert [item.stimulus for _, items in ready for item in items] == list(range(6))


def test_a_batch_is_made_while_another_runs():
    made = threading.Event()

    def placed():
        yield "first"
        made.set()
        yield "second"

    with batches.ahead(placed(), Stop()) as ahead:
        assert next(ahead) == "first"
        assert made.wait(30), "nobody asked for the second"
        assert list(ahead) == ["second"]


def test_a_slow_disk_holds_the_devices_up(tmp_path):
    """What waits to be written is two batches, not all of them."""
    slow, third = threading.Event(), threading.Event()
    row = jobs.Row(0, 2, "a@b", "", "c", "0", 1, 0)
    held = SimpleNamespace(add=lambda *_: slow.wait(30))
    items = [groups.Item(row, 0, 0, None)]
    of = (items, np.zeros((1, 1, 1)), np.zeros((1, 1)), {"total": np.zeros(1)})

    def submit(writer):
        for _ in range(3):
            writer.submit(*of)
        third.set()

    done = SimpleNamespace(finish=lambda: None)
    with pipeline._Writer(held, done) as writer:
        thread = threading.Thread(target=submit, args=[writer])
        thread.start()
        assert not third.wait(0.3)
        slow.set()
        thread.join()
    assert third.is_set()


def test_the_batch_matters_with_a_verifier_alone(tmp_path, models, clips):
    row = {"model": "tiny@0", "stimulus": clips / "0.npz", "label": 0}
    table = write(tmp_path / "jobs.csv", [row | {"verifier": "tiny@1"}])
    jobs.execute(table, tmp_path / "out", SETTINGS, 1)
    with pytest.raises(UserError, match=r"differs in batch\)"):
        jobs.execute(table, tmp_path / "out", SETTINGS, 2)


# Processes of their own.

SCRIPT = """
import json, os, resource, sys, time
from pathlib import Path
import numpy as np
from conftest import make_tiny
from leaps_jax import Config
from leaps_jax.progress import Stop
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import pipeline
from leaps_jax.zoo import load as loading
from leaps_jax.zoo import references

table, out, batch, steps, every = Path(sys.argv[1]), Path(sys.argv[2]), *map(
    int, sys.argv[3:6]
)
shard = jobs.Shard.parse(os.environ.get("SHARD"))
tiny = make_tiny(0)
loading.load_model = lambda reference, **_: tiny
references.fingerprint = lambda reference: reference
add, seen = pipeline._Writer._write, []

def noting(self, items, *what):
    add(self, items, *what)
    if every and items[-1].row.number // every > len(seen):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        seen.append(pages * resource.getpagesize() / 2**20)
        print(items[-1].row.number, round(seen[-1], 1), flush=True)

pipeline._Writer._write = noting
config = Config(steps=steps, steps_per_call=max(1, steps // 2), noise=0.3)
settings = jobs.Settings("leaps", config)
record = jobs.execute(table, out, settings, batch, shard)
print(json.dumps(record), flush=True)
"""


def start(table: Path, out: Path, batch: int, steps: int, every: int = 0, **variables):
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, (table, out, batch, steps, every))],
        env=os.environ | {"PYTHONPATH": path} | variables,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_and_started_again(tmp_path, clips):
    """At most the batches in flight are lost, and nothing is written twice."""
    rows = [
        {"model": "tiny@0", "stimulus": clips / f"{i % 4}.npz", "label": i % 5}
        for i in range(40)
    ]
    rows[3]["copies"] = 9  # goes through five batches
    table, out = write(tmp_path / "jobs.csv", rows), tmp_path / "out"
    batch, before = 2, 0
    for wanted in (2, 12):
        process = start(table, out, batch, 40)
        while process.poll() is None and len(files(out)) < wanted:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done, now = files(out), videos(out)
        assert wanted <= len(done) < 40
        finished = json.loads((out / "shard-1-of-1.json").read_text())["batches"]
        # two at most were between the devices and the disk
        assert now - before >= batch * (finished - 2)
        before = now
    process = start(table, out, batch, 40)
    record = json.loads(process.stdout.read().splitlines()[-1])
    assert process.wait() == 0
    assert record["done_before"] == len(done) and not record["failed"]
    assert record["finished"] == 40 - len(done)
    assert done.items() <= files(out).items(), "rows that were there are the same files"
    assert sorted(results(out)) == list(range(40))
    assert results(out)[3]["videos"].shape[0] == 9 and not os.listdir(out / "parts")
    assert record["batches"] == -(-(48 - before) // batch)
    whole = jobs_of(table, tmp_path / "whole")
    for number, row in results(out).items():
        assert difference(row["videos"], whole[number]["videos"]) <= 1


def videos(out: Path) -> int:
    """Finished rows' and those of parts."""
    copies = [len(row["videos"]) for row in results(out).values()]
    for path in out.glob("parts/*/0*.npz"):
        first, last = path.stem.split("-")
        copies.append(int(last) + 1 - int(first))
    return sum(copies)


def jobs_of(table: Path, out: Path) -> dict[int, dict[str, np.ndarray]]:
    assert start(table, out, 8, 40).wait() == 0
    return results(out)


def test_ctrl_c_ends_in_order(tmp_path, clips):
    rows = [{"model": "tiny@0", "stimulus": clips / "0.npz", "label": 1, "copies": 500}]
    table, out = write(tmp_path / "jobs.csv", rows), tmp_path / "out"
    process = start(table, out, 4, 40)
    while process.poll() is None and not list(out.glob("parts/*/0*.npz")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    record = json.loads(process.stdout.read().splitlines()[-1])
    assert process.wait() == 0 and record["status"] == "stopped"
    copies = 4 * len(list(out.glob("parts/*/0*.npz")))
    assert copies in (4 * record["batches"], 4 * record["batches"] - 4)


def test_four_devices_make_the_same_videos(tmp_path, models, table):
    """Also where the batch does not divide by them, and where it is smaller."""
    jobs.execute(table, tmp_path / "one", SETTINGS, 5)
    one = results(tmp_path / "one")
    for batch in (3, 6):
        flags = "--xla_force_host_platform_device_count=4"
        out = tmp_path / str(batch)
        assert start(table, out, batch, 6, XLA_FLAGS=flags).wait() == 0
        for number, row in results(out).items():
            assert difference(row["videos"], one[number]["videos"]) <= 1


DISTRIBUTED = """
import sys
import jax

address, number = sys.argv.pop(), int(sys.argv.pop())
jax.distributed.initialize(address, 2, number)
"""


def test_two_processes_share_the_rows(tmp_path, models, table):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    words = [*map(str, (table, tmp_path / "out", 3, 6, 0))]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DISTRIBUTED + SCRIPT, *words, str(number), address],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    records = [json.loads(p.stdout.read().splitlines()[-1]) for p in processes]
    assert [process.wait() for process in processes] == [0, 0]
    assert [record["finished"] for record in records] == [4, 3]
    jobs.execute(table, tmp_path / "one", SETTINGS, 3)
    one, both = results(tmp_path / "one"), results(tmp_path / "out")
    assert list(both) == list(range(7))
    for number, row in both.items():
        assert difference(row["videos"], one[number]["videos"]) <= 1


class Clock:
    """Time that passes for what a test says alone, however fast the machine is."""

    def __init__(self, monkeypatch):
        self._now, self._changed = 0.0, threading.Condition()
        self.ready = self.over = 0  # batches
        monkeypatch.setattr(journal, "time", self)
        make, end = groups.Group.ready, journal.Journal.end

        def ready(group, *of):
            made = make(group, *of)
            self.count("ready")
            return made

        def over(of):
            end(of)
            self.count("over")

        monkeypatch.setattr(groups.Group, "ready", ready)
        monkeypatch.setattr(journal.Journal, "end", over)

    def monotonic(self) -> float:
        return self._now

    def count(self, what: str) -> None:
        with self._changed:
            setattr(self, what, getattr(self, what) + 1)
            self._changed.notify_all()

    def wait(self, what: str, number: int) -> None:
        with self._changed:
            came = self._changed.wait_for(lambda: getattr(self, what) >= number, 60)
        assert came, f"{getattr(self, what)} batches are {what}, not {number}"

    def takes(self, monkeypatch, where, name: str, seconds: float, before) -> None:
        """A function takes this long, once `before` allows it to go on."""
        function = getattr(where, name)

        def slow(*args, **options):
            before()
            with self._changed:
                self._now += seconds
            return function(*args, **options)

        monkeypatch.setattr(where, name, slow)


def test_devices_do_not_wait(tmp_path, models, clips, monkeypatch):
    """A batch takes long beside what its clips take; they are decoded meanwhile."""
    clock = Clock(monkeypatch)
    rows = [
        {"model": "tiny@0", "stimulus": clips / f"{i % 4}.npz", "label": i % 5}
        for i in range(32)
    ]
    table = write(tmp_path / "jobs.csv", rows)

    def next_is_ready():
        clock.wait("ready", min(clock.over + 2, 8))

    clock.takes(monkeypatch, clips_module, "load_stimulus", 1, lambda: None)
    clock.takes(monkeypatch, engine.Engine, "run", 100, next_is_ready)
    record = jobs.execute(table, tmp_path / "out", SETTINGS, 4)
    assert record["batches"] == 8 and record["idle_share"] < 0.05
    assert record["seconds"] >= 8 * 100


def test_one_thread_alone_uses_the_devices(tmp_path, models, table, monkeypatch):
    """While it does, the others read, decode, load, compile and write."""
    used, compiled, loaded = [], [], []

    def heard(module, name, heard_of):
        function = getattr(module, name)

        def hearing(*args, **options):
            heard_of.append(threading.current_thread())
            return function(*args, **options)

        monkeypatch.setattr(module, name, hearing)

    for name in ("shard", "replicate", "gather", "gather_metrics"):
        heard(parallel, name, used)
    heard(engine, "compile_for", compiled)
    load = loading.load_model

    def load_model(*args, **options):
        loaded.append(jax.config.jax_default_device)
        return load(*args, **options)

    monkeypatch.setattr(loading, "load_model", load_model)
    record = jobs.execute(table, tmp_path / "out", SETTINGS, 2)
    assert record["finished"] == 7 and record["failed"] == 0
    assert set(used) == {threading.main_thread()}
    assert {thread.name for thread in compiled} == {"batches"}
    assert loaded and {device.platform for device in loaded} == {"cpu"}


def test_a_slow_decoder_shows_as_idle(tmp_path, models, clips, monkeypatch):
    """The clock of the idle time does see a device that waits."""
    clock = Clock(monkeypatch)
    rows = [
        {"model": "tiny@0", "stimulus": clips / "0.npz", "label": i} for i in "0123"
    ]
    decoded = iter(range(4))

    def none_is_left_to_run():
        clock.wait("over", next(decoded))

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    clock.takes(monkeypatch, clips_module, "load_stimulus", 3, none_is_left_to_run)
    clock.takes(monkeypatch, engine.Engine, "run", 1, lambda: None)
    table = write(tmp_path / "jobs.csv", rows)
    record = jobs.execute(table, tmp_path / "out", SETTINGS, 1)
    assert (record["idle_seconds"], record["idle_share"]) == (3 * 3, 3 / 4)


def test_one_process_a_shard(tmp_path, models, table):
    held = folder.Folder(tmp_path / "out", jobs.Shard(1, 1), {})
    (tmp_path / "out").mkdir()
    with held.locked(), pytest.raises(UserError, match="another process"):
        jobs.execute(table, tmp_path / "out", SETTINGS, 4)
    assert jobs.execute(table, tmp_path / "out", SETTINGS, 4)["finished"] == 7


@pytest.mark.heavy
def test_memory_of_the_host_stays_flat(tmp_path, clips):
    rows = (
        {"model": "tiny@0", "stimulus": clips / f"{i % 4}.npz", "label": i % 5}
        for i in range(2000)
    )
    table = write(tmp_path / "jobs.csv", rows)
    process = start(table, tmp_path / "out", 16, 1, every=200)
    lines = process.stdout.read().splitlines()
    assert process.wait() == 0
    resident = [float(line.split()[1]) for line in lines[:-1]]
    assert len(resident) >= 8
    assert max(resident[2:]) - min(resident[2:]) < 32, resident


def broken(path: Path, kind: int) -> Path:
    """A stimulus of no use: missing, cut short, of no frames or no clip at all."""
    if kind == 1:
        np.savez(path, video=np.zeros((8, 32, 40, 3), np.uint8))
        path.write_bytes(path.read_bytes()[:500])
    elif kind == 2:
        np.savez(path, video=np.zeros((0, 32, 40, 3), np.uint8))
    elif kind == 3:
        path.write_bytes(b"no clip")
    return path


@pytest.mark.heavy
def test_every_row_of_a_long_table_is_done_once_or_explained(tmp_path, clips):
    """10,000 rows, one in twenty bad, two shards at once, and three kills."""
    count, shards = 10_000, ("1/2", "2/2")
    unusable = [broken(tmp_path / f"bad{kind}.npz", kind) for kind in range(4)]
    rows = [
        {
            "model": "tiny@0",
            "stimulus": unusable[i // 20 % 4]
            if i % 20 == 7
            else clips / f"{i % 4}.npz",
            "label": i % 5,
            "seed": i,
        }
        for i in range(count)
    ]
    bad = {i for i in range(count) if i % 20 == 7}
    table, out = write(tmp_path / "jobs.csv", rows), tmp_path / "out"
    before = {}
    for kill in range(4):
        running = [start(table, out, 32, 1, 500, SHARD=shard) for shard in shards]
        while kill < 3 and len(files(out)) < (kill + 1) * count // 5:
            assert any(process.poll() is None for process in running)
            time.sleep(0.2)
        for process in running if kill < 3 else ():
            process.send_signal(signal.SIGKILL)
        said = [process.stdout.read().splitlines() for process in running]
        codes = [process.wait() for process in running]
        now = files(out)
        assert before.items() <= now.items(), "a row was written twice"
        before = now
    assert codes == [0, 0]
    assert {int(name.removesuffix(".npz")) for name in before} == set(
        range(count)
    ) - bad
    lines = [
        json.loads(line)
        for path in out.glob("failed-*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert sorted(line["row"] for line in lines) == sorted(bad)
    for line in lines:
        assert str(unusable[line["row"] // 20 % 4]) in line["error"], line
    for path in (out / "rows").rglob("*.npz"):
        with np.load(path) as row:
            assert row["seed"] == row["row"] == int(path.stem)
            assert row["videos"].shape == (1, 4, 32, 32, 3)
    for words in said:
        resident = [float(line.split()[1]) for line in words[:-1]]
        assert max(resident[1:]) - min(resident[1:]) < 64, resident
