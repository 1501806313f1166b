"""All commands: help, words that are none, and errors that are not the user's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import BENCH, GOOD, assert_refused, words_of

import leaps_jax as lj
from leaps_jax.runtime.engine import NotFiniteError

COMMANDS = (
    *("models", "convert", "synthesize", "train", "accuracy", "evaluate", "demo"),
    *("actions", "bench", "jobs"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_fits_a_terminal(call, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = call(command, "--help")
    assert max(map(len, shown.out.splitlines())) <= 80
    assert shown.code == 0
    assert f"leaps-jax {command} " in shown.out.partition("example:")[2]


@pytest.mark.parametrize("words", [[], ["invert"], ["synthesize"], ["train", "--x"]])
def test_words_that_are_no_command(call, root, words):
    assert_refused(call, root, words, ["--help"])


def test_a_loss_that_is_not_finite_fails(call, monkeypatch):
    def broken(*_, **__):
        raise NotFiniteError("step 3: the loss is nan", None)

    monkeypatch.setattr("leaps_jax.runs.folder.execute", broken)
    ran = call(*words_of("synthesize", GOOD))
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == "leaps-jax: failed: step 3: the loss is nan"


def test_other_errors_keep_their_trace(call, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such axis")

    monkeypatch.setattr("leaps_jax.bench.measure", broken)
    with pytest.raises(RuntimeError, match="no such axis"):
        call(*words_of("bench", BENCH, batch=1))


def test_an_error_waits_for_no_thread():
    """A thread may compile with XLA, which cannot be interrupted."""
    program = """if True:
        import threading, time
        from leaps_jax.cli.main import entry
        threading.Thread(target=time.sleep, args=(300,)).start()
        entry()
    """
    words = [sys.executable, "-c", program, "models", "none"]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2 and "error: model='none'" in ran.stderr


def test_the_command_in_a_process_of_its_own(root):
    words = words_of("synthesize", GOOD, label="jacks", out="{root}/refused")
    words = [str(word).format(root=root) for word in words]
    ran = subprocess.run(
        [sys.executable, "-m", "leaps_jax", *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2 and not ran.stdout
    (line,) = ran.stderr.splitlines()
    assert "label='jacks'" in line and "did you mean jack?" in line


def test_version(call):
    shown = call("--version")
    assert (shown.code, shown.out, shown.err) == (0, "leaps-jax 0.1.0\n", "")
    assert lj.__version__ == "0.1.0"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "--xla_gpu_enable_triton_gemm=false"),
        ("--xla_a=1", "--xla_a=1 --xla_gpu_enable_triton_gemm=false"),
        ("--xla_gpu_enable_triton_gemm=true", "--xla_gpu_enable_triton_gemm=true"),
    ],
)
def test_triton_gemm_is_off_unless_the_user_sets_it(call, monkeypatch, given, expected):
    monkeypatch.setenv("XLA_FLAGS", given or "")
    if given is None:
        monkeypatch.delenv("XLA_FLAGS")
    assert call("models", "--json").code == 0
    assert os.environ["XLA_FLAGS"] == expected


def test_an_xla_flag_may_be_set_after_the_import():
    code = (
        "import os; from leaps_jax.cli import main;"
        "os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=3';"
        "import jax; print(jax.device_count())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "3"
