"""The guard of the hostile cases sees what it is for."""

import subprocess
import time
import urllib.request

import guard
import numpy as np
import pytest

clip_files = pytest.importorskip("clip_files")


def ask_by_ffmpeg():
    exe = clip_files.imageio_ffmpeg.get_ffmpeg_exe()
    command = [exe, "-v", "quiet", "-i", guard.addresses[0], "-f", "null", "-"]
    subprocess.run(command)


def ask_by_python():
    with pytest.raises(OSError):
        urllib.request.urlopen("http://example.invalid", timeout=5)


@pytest.mark.parametrize("ask", [ask_by_ffmpeg, ask_by_python])
def test_who_asks_the_network_is_heard(ask):
    with pytest.raises(AssertionError, match="asked the network"), guard.guarded():
        ask()
    with guard.guarded():
        pass


def test_memory_is_measured(monkeypatch):
    monkeypatch.setattr(guard, "MEMORY", 2**27)
    with pytest.raises(AssertionError, match="a case took 1.. MiB"), guard.guarded():
        np.ones(2**27 + 2**24, np.uint8)


def test_a_case_that_takes_long_is_ended(monkeypatch):
    monkeypatch.setattr(guard, "SECONDS", 1)
    with pytest.raises(AssertionError, match="took more than 1 s"), guard.guarded():
        time.sleep(30)
