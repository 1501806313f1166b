"""Tables of jobs: every good row once, whatever batch, shard or bad row."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from job_tables import CONFIG, SETTINGS, difference, files, results, write
from tiny import make_tiny

from leaps_jax import UserError, objectives, synthesis
from leaps_jax.cli.main import main
from leaps_jax.data.clips import load_stimulus
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import batches, groups, journal
from leaps_jax.runtime import engine
from leaps_jax.zoo import load as loading

pytestmark = pytest.mark.usefixtures("compiled")


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
    pixels = synthesis.as_pixels(problem, last.state().parameters)
    assert difference(np.rint(pixels * 255), row["videos"]) <= 1
    assert difference(row["videos"][0], row["videos"][1]) > 50
    total = row["final"][:, row["terms"].tolist().index("total")]
    np.testing.assert_allclose(total, last.metrics["total"][-1], rtol=1e-3)


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
