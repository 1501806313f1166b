"""`leaps-jax bench`: a step is timed, and what it counts is what the network does."""

import json
import types

import jax
import pytest

from leaps_jax import bench
from leaps_jax.cli.main import main
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import costs

CEILINGS = 2e10, 1e9  # not those of this machine, which may be busy


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    words = (
        "bench --model slow_r50_tiny --batch 2 --frames 4 --size 32 --steps 3 --json"
    )
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda line, **_: lines.append(line))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(bench, "ceilings", lambda device: CEILINGS)
        assert main(words.split()) == 0
    return json.loads(lines[-1])  # after those of the progress


def test_time_is_that_of_finished_steps(report):
    assert len(report["ms_per_step_of_calls"]) == 5
    assert 0 < min(report["ms_per_step_of_calls"]) <= report["ms_per_step"]
    per_second = 1e3 * 2 / report["ms_per_step"]
    rounded = pytest.approx(per_second, rel=0.01, abs=0.005)
    assert report["video_steps_per_second"] == rounded
    assert report["compile_seconds"] > report["compile_seconds_warm"] >= 0


def test_flops_are_those_of_the_network(report):
    module, _ = zoo.build("slow_r50_tiny", zoo.KINETICS_400, frames=4, size=32)
    # forward and the gradient of the input, multiply and add, two videos
    assert report["flops_per_step"] == 2 * 2 * 2 * costs.macs(module)
    assert (report["tflops_matmul"], report["tb_per_second_copy"]) == (0.02, 0.001)


def test_the_floor_is_that_of_the_slower_ceiling(report):
    matmul, copy = (ceiling * report["devices"] for ceiling in CEILINGS)
    floor = 1e3 * max(
        report["flops_per_step"] / matmul, report["bytes_per_step"] / copy
    )
    assert report["floor_ms"] == pytest.approx(floor, abs=5e-4)
    share = floor / report["ms_per_step"]
    assert report["share_of_floor"] == pytest.approx(share, rel=0.01, abs=1e-4)


def test_a_step_moves_the_first_features_at_least_twice(report):
    """Forward and backward."""
    features = 2 * 4 * 16 * 16 * 24 * 4  # videos, frames, height, width, channels, F32
    assert 2 * features < report["bytes_per_step"]


def test_it_says_what_was_measured(report):
    want = {"model": "slow_r50_tiny", "verifier": None, "batch": 2, "frames": 4}
    want |= {"size": 32, "dtype": "float32", "devices": jax.device_count()}
    assert {name: report[name] for name in want} == want
    assert report["versions"]["jax"] == jax.__version__


def test_ceilings_are_of_this_device(monkeypatch):
    """Twenty products, and then twenty copies, take what the clock says."""
    device, placed = jax.devices()[0], []
    clock, run = iter([0.0, 4.0, 10.0, 12.0]), jax.block_until_ready

    def waited(result):
        placed.append(result.devices())
        return run(result)

    timer = types.SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(bench, "time", timer)
    monkeypatch.setattr(jax, "block_until_ready", waited)
    matmul, copy = bench.ceilings(device)
    assert placed == [{device}] * 4
    assert matmul == pytest.approx(2 * 1024**3 / (4 / 20))
    assert copy == pytest.approx(2 * 4 * 2**24 / (2 / 20))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model slow_r50_tiny --batch 0", "batch=0: must be at least 1"),
        (
            "--model slow_r51 --batch 1",
            "model='slow_r51': not in the zoo; did you mean",
        ),
        (
            "--model slow_r50_tiny@actions --size 64 --batch 1",
            "model='slow_r50_tiny@actions': weights have frames and a size",
        ),
    ],
)
def test_mistakes_are_one_line(capsys, words, message):
    assert main(["bench", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
