"""A command outlives the terminal and the pipes that it was started with."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import GOOD, record, words_of

from leaps_jax.cli import terminal
from leaps_jax.cli.main import main
from leaps_jax.progress import interruptible


def command(root: Path, out: Path, **changed) -> list[str]:
    words = words_of("synthesize", GOOD, out=out, **changed)
    return [str(word).format(root=root) for word in words]


@pytest.fixture
def broken_pipe():
    """A stream that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        yield stream
        terminal.silence(stream)


@pytest.mark.parametrize("what", ["a dead reader", "a full disk"])
def test_work_outlives_its_standard_error(
    root, tmp_path, monkeypatch, broken_pipe, what
):
    if what == "a full disk" and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "w", buffering=1) as full:
        stream = full if what == "a full disk" else broken_pipe
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(command(root, tmp_path / "out")) == 0
        assert sys.stderr is stream
        terminal.silence(full)
    assert record(tmp_path / "out")["status"] == "finished"


def test_a_process_that_nobody_listens_to(root):
    """Exit code 120 is Python's, for streams that it cannot flush at its end."""
    words = f"{sys.executable} -m leaps_jax synthesize --model x --out o --label 0"
    ran = subprocess.run(
        f"{words} 2>/dev/full; echo $?; {sys.executable} -m leaps_jax models >/dev/full"
        "; echo $?",
        shell=True,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == ["2", "1"]
    (line,) = ran.stderr.splitlines()
    assert line.startswith("leaps-jax: failed: ") and os.strerror(28) in line


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_fault_of_the_machine_is_one_line(root, tmp_path, capsys, monkeypatch, code):
    def broken(*_, **__):
        raise OSError(code, os.strerror(code), str(tmp_path / "out" / "run.json"))

    monkeypatch.setattr("leaps_jax.files.write_json", broken)
    assert main(command(root, tmp_path / "out")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("leaps-jax: failed: ") and os.strerror(code) in last
    assert "run.json" in last and "start the same command again" in last
    monkeypatch.undo()
    assert main(command(root, tmp_path / "out")) == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_ask_once_and_then_end(name):
    number = getattr(signal, name)
    default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    before = signal.signal(number, default)  # Ray leaves one of its own
    try:
        with terminal.outlived():
            with interruptible() as stop:
                os.kill(os.getpid(), number)
                assert stop
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), number)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) == default
    finally:
        signal.signal(number, before)


def test_the_first_signal_is_answered_at_once(monkeypatch, capsys):
    clock = iter([0.0, 7.0])
    monkeypatch.setattr("leaps_jax.progress.time.monotonic", lambda: next(clock))
    with interruptible() as stop:
        stop.begin_call()
        stop.begin_call()
        os.kill(os.getpid(), signal.SIGINT)
    line = "stopping after the steps that run, 7 s at most; once more stops now"
    assert capsys.readouterr().err.split("\n") == ["", line, ""]


def test_nohup_stays_in_force(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminal.outlived(), interruptible() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)
