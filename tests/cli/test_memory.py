"""What does not fit the memory is one line."""

import jax
import pytest
from command import BENCH, GOOD, TRAIN, words_of

FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 B")

ACCURACY = {"model": "timesformer_small@{root}/weights", "data": "{root}/tree"}

TOO_LARGE = {
    "train": (TRAIN, "leaps_jax.training.train", "batch="),
    "accuracy": (ACCURACY | {"batch": 6}, "leaps_jax.training.evaluate", "batch=6"),
    "bench": (BENCH | {"batch": 7}, "leaps_jax.bench.measure", "batch=7"),
    "synthesize": (GOOD | {"copies": 3}, "leaps_jax.runs.folder.execute", "copies=3"),
}


def assert_too_large(ran, expected):
    """One line, after those that tell what was read."""
    assert ran.code == 2 and "Traceback" not in ran.err and not ran.out
    line = ran.err.splitlines()[-1]
    assert line.startswith("leaps-jax: error: ")
    for part in ("does not fit the memory", "lower it", *expected):
        assert part in line


@pytest.mark.parametrize(
    "error",
    [FULL, RuntimeError("INTERNAL: CUDA_ERROR: out of memory"), MemoryError()],
    ids=["XLA", "CUDA", "Python"],
)
@pytest.mark.parametrize("command", TOO_LARGE)
def test_what_does_not_fit_the_memory(call, root, monkeypatch, command, error):
    given, function, told = TOO_LARGE[command]

    def full(*_, **__):
        raise error

    monkeypatch.setattr(function, full)
    out = {"out": "{root}/too large"} if "out" in given else {}
    words = words_of(command, given, **out)
    assert_too_large(call(*words), [told])


def test_memory_that_no_argument_sets(call, root, finished, monkeypatch):
    def full(*_, **__):
        raise FULL

    monkeypatch.setattr("leaps_jax.zoo.load.load_model", full)
    judged = ["evaluate", finished[0], "--judges", "vivit_small@actions", "--out"]
    for words in ([*judged, "{root}/full.json"], ["demo", "--out", "{root}/full"]):
        ran = call(*words)
        assert ran.code == 2 and "Traceback" not in ran.err
        assert "error: memory: does not suffice; end" in ran.err.splitlines()[-1]


def test_an_absurd_batch(call, root):
    words = words_of("synthesize", GOOD, copies=10**9, out="{root}/absurd")
    assert_too_large(call(*words), ["copies=1000000000"])
    words = words_of("train", TRAIN, batch=10**12, out="{root}/absurd")
    assert_too_large(call(*words), ["batch=1000000000000"])
    words = words_of("bench", BENCH, batch=10**10)
    assert_too_large(call(*words), ["batch=10000000000", "--remat"])


def test_a_table_of_which_nothing_fits(call, root, monkeypatch):
    def full(*_, **__):
        raise FULL

    monkeypatch.setattr("leaps_jax.runtime.engine.Engine.compile", full)
    row = f"timesformer_small@{root}/weights,,{root}/clip.mp4,jack,,\n"
    (root / "large.csv").write_text("model,verifier,stimulus,label,copies,seed\n" + row)
    words = ["synthesize", "--jobs", "{root}/large.csv", "--out", "{root}/large"]
    assert_too_large(call(*words), ["batch=8", "--remat"])
