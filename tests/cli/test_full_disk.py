"""A disk that gets full, turns read-only or loses the folder, at any write."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from work import WORK

REASONS = [os.strerror(code) for code in (errno.ENOSPC, errno.EROFS, errno.ENOENT)]
UNSHARE = ["unshare", "-rm", "--propagation", "private"]


def can_mount(folder: Path) -> bool:
    if not shutil.which("unshare"):
        return False
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    return subprocess.run([*UNSHARE, *mount], capture_output=True).returncode == 0


@pytest.mark.heavy
@pytest.mark.parametrize("command", WORK)
def test_a_bad_disk_is_one_line_and_loses_nothing(root, finished, tmp_path, command):
    if not can_mount(tmp_path):
        pytest.skip("this user cannot mount a file system of its own")
    script = Path(__file__).with_name("faulty_disk.py")
    ran = subprocess.run(
        [*UNSHARE, sys.executable, str(script), command, str(root), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    failed = 0
    for line in ran.stdout.splitlines():
        case, code, said, code_again, said_again, same = json.loads(line)
        assert "Traceback" not in said, (case, said)
        if code:  # the largest of the sizes may suffice, and there are few writes
            failed += 1
            last = said.splitlines()[-1]
            assert code == 1 and last.startswith("leaps-jax: failed: "), (case, said)
            assert any(reason in last for reason in REASONS), (case, said)
            assert len(last) <= 400 and last.isprintable()
        if code or command != "evaluate":  # of which a whole report is not replaced
            assert code_again == 0, (case, said_again)
        assert same, case
        print(command, case, code, flush=True)
    assert failed >= 10
