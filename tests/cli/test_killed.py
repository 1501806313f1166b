"""Commands that are killed at any moment: the same command ends as if it never was."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from work import WORK, names

MOMENTS = 20
PROGRAM = """
import sys
from work import shrink
from leaps_jax.cli.main import main
shrink(sys.argv[1])
sys.exit(main(sys.argv[1:]))
"""


def start(words: list[str]) -> subprocess.Popen:
    path = os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.heavy
@pytest.mark.parametrize("command", WORK)
def test_killed_at_any_moment(root, finished, tmp_path, command):
    """A moment is a share of the time that all of it takes; imports come first."""
    work, out = WORK[command], tmp_path / "whole"
    took = 0.0
    for _ in range(2):  # the second finds its programs compiled
        out, began = out.with_name(f"{out.name}+"), time.monotonic()
        process = start(work.words(root, out))
        said = process.stderr.read()
        assert process.wait() == 0, said
        took = time.monotonic() - began
    whole, files = work.result(out), names(out)

    out, killed = tmp_path / "killed", 0
    for share in np.random.default_rng(0).uniform(0.3, 1, MOMENTS):
        process = start(work.words(root, out))
        try:
            process.wait(share * took)
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        said = process.stderr.read()
        assert process.wait() in (0, -9), said
        if process.returncode == 0:
            assert (work.result(out), names(out)) == (whole, files)
            out = out.with_name(f"{out.name}+")
    print(f"{command}: killed {killed} times, of {took:.1f} s each")
    assert killed >= MOMENTS // 2
    process = start(work.words(root, out))
    said = process.stderr.read()
    assert process.wait() == 0, said
    assert (work.result(out), names(out)) == (whole, files)
