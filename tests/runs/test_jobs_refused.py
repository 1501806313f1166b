"""Tables and arguments of jobs that are refused, in one line."""

import pytest

from leaps_jax.cli.main import main

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
