"""A long table of jobs, of which some clips are of no use, killed and resumed."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from job_tables import files, start, write

pytestmark = pytest.mark.usefixtures("compiled")

ROWS = 10_000
SHARDS = ("1/2", "2/2")
KILLS = 3


def unusable(folder: Path) -> list[Path]:
    """Clips of no use, each of its own kind."""
    frames = np.zeros((8, 32, 40, 3), np.uint8)
    names = "missing.npz short.npz none.npz text.npz nan.npz index.mp4 pipe.mp4"
    missing, short, none, text, nan, index, pipe = map(folder.joinpath, names.split())
    np.savez(short, video=frames)
    os.truncate(short, 500)
    np.savez(none, video=frames[:0])
    text.write_bytes(b"no clip")
    np.savez(nan, video=np.full(frames.shape, np.nan, np.float32))
    index.write_bytes(b"\0\0\0\x14ftypmp42\0\0\0\0mp42" + bytes(200))
    os.mkfifo(pipe)
    return [missing, short, none, text, nan, index, pipe]


@pytest.mark.heavy
def test_every_row_of_a_long_table_is_done_once_or_explained(tmp_path, clips):
    """One clip in twenty is of no use; both shards run at once, and are killed."""
    unused = unusable(tmp_path)
    bad = {i: unused[i // 20 % len(unused)] for i in range(7, ROWS, 20)}
    rows = [
        {
            "model": "tiny@0",
            "stimulus": bad.get(i, clips / f"{i % 4}.npz"),
            "label": i % 5,
            "seed": i,
        }
        for i in range(ROWS)
    ]
    table, out = write(tmp_path / "jobs.csv", rows), tmp_path / "out"
    before, began = {}, time.monotonic()
    for start_number in range(KILLS + 1):
        running = [start(table, out, 32, 1, 5, SHARD=shard) for shard in SHARDS]
        if start_number < KILLS:
            while len(files(out)) < (start_number + 1) * ROWS // (KILLS + 2):
                assert all(process.poll() is None for process in running)
                time.sleep(0.2)
            for process in running:
                process.send_signal(signal.SIGKILL)
        said = [process.stdout.read().splitlines() for process in running]
        codes = [process.wait() for process in running]
        now = files(out)
        assert before.items() <= now.items(), "a row was written twice"
        print(f"{time.monotonic() - began:.0f} s: {len(now)} rows, {codes}")
        for shard, lines in zip(SHARDS, said, strict=True):
            last = codes == [0, 0]
            resident = [
                float(line.split()[1]) for line in lines[: -1 if last else None]
            ]
            print(f"  shard {shard}: MiB {resident}")
            assert max(resident[1:]) - min(resident[1:]) < 64, resident
        before = now
    assert codes == [0, 0]

    assert {int(name.removesuffix(".npz")) for name in before} == set(
        range(ROWS)
    ) - set(bad)
    for lines in said:
        record = json.loads(lines[-1])
        parts = [record[name] for name in ("done_before", "finished", "failed")]
        assert sum(parts) == record["rows"] == ROWS / 2
    failures = [
        json.loads(line)
        for path in out.glob("failed-*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert sorted(line["row"] for line in failures) == sorted(bad)
    for line in failures:
        assert str(bad[line["row"]]) in line["error"], line
    for path in (out / "rows").rglob("*.npz"):
        with np.load(path) as row:
            assert row["seed"] == row["row"] == int(path.stem)
            assert row["videos"].shape == (1, 4, 32, 32, 3)
    assert not os.listdir(out / "parts")
