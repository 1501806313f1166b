"""A device that fails midway: one line, and the same command goes on.

`test_resumed_train.py` has the case of a training.
"""

import contextlib
import json
from collections.abc import Iterator

import jax
import pytest
from command import GOOD, record, words_of

from leaps_jax.runtime import engine

LOST = jax.errors.JaxRuntimeError("INTERNAL: the device is lost \x1b[31m\nat 0x0")


@contextlib.contextmanager
def lost_after(calls: int) -> Iterator[None]:
    """Has the engine raise what a lost device raises, after so many calls in all."""
    whole, left = engine.Engine.run, [calls]

    def broken(*args, **kwargs):
        for report in whole(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise LOST
            yield report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Engine, "run", broken)
        yield


def assert_told(ran):
    line = ran.err.splitlines()[-1]
    assert ran.code == 1 and "Traceback" not in ran.err and line.isprintable()
    assert line.startswith("leaps-jax: failed: device: INTERNAL: the device is lost")
    assert line.endswith("start the same command again, with the device to itself")


def test_a_synthesis(call, tmp_path):
    words = words_of("synthesize", GOOD, out=tmp_path / "out", save_every=0)
    with lost_after(1):
        assert_told(call(*words))
    assert record(tmp_path / "out")["status"] == "running"
    ran = call(*words)
    assert ran.code == 0 and "at step 4" in ran.err


def test_a_table(call, root, tmp_path):
    """Rows that were not done are named, and done by the next start."""
    table, out = tmp_path / "jobs.csv", tmp_path / "out"
    row = f"timesformer_small@{root}/weights,{root}/clip.mp4,jack"
    rows = "\n".join(f"{row},{seed}" for seed in range(4))
    table.write_text(f"model,stimulus,label,seed\n{rows}\n")
    given = {"jobs": table, "out": out, "steps": 2, "batch": 1}
    words = words_of("synthesize", given)
    with lost_after(2):
        ran = call(*words)
    assert ran.code == 1 and "results: 2 of 4 rows" in ran.out
    failures = (out / "failed-1-of-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in failures] == [2, 3]
    assert all("the device is lost" in line for line in failures)
    assert call(*words).code == 0 and len(list(out.glob("rows/*/*.npz"))) == 4
