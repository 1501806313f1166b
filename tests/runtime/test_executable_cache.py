"""Compiled steps come back from disk: the same bits without a trace, or not at all."""

import dataclasses
import functools
import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import ONE, kept

from leaps_jax import Config, Model, objectives, synthesis, update
from leaps_jax.runs import jobs
from leaps_jax.runtime import engine, executable_cache
from leaps_jax.runtime.executable_cache import ExecutableCache, Traced, described
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading
from leaps_jax.zoo import references

CLASSES = ("bend", "jack", "run")
CONFIG = Config(steps=4, steps_per_call=2)
STIMULI = np.random.default_rng(0).random((2, 4, 28, 28, 3), np.float32)


@functools.cache
def network(seed: int) -> Model:
    module, spec = zoo.build(
        "timesformer_small", CLASSES, frames=4, size=28, patch=14, stem=(), depth=1
    )
    variables = jax.jit(module.init)(jax.random.key(seed), np.zeros((1, 4, 28, 28, 3)))
    return Model(module, variables, spec)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a run as a new process would: (videos, how often a network is traced)."""
    traced = []
    for name in ("_evaluate", "prime"):
        function = getattr(update, name)

        def counting(*of, function=function):
            traced.append(function)
            return function(*of)

        monkeypatch.setattr(update, name, counting)

    def run(kept=True, model=None, config=CONFIG, objective=None):
        traced.clear()
        result = synthesis.synthesize(
            model or network(0),
            STIMULI,
            [0, 1],
            None,
            config,
            objective,
            ONE,
            ExecutableCache(tmp_path / "kept") if kept else None,
        )
        return result.videos, len(traced)

    run.traced = traced
    return run


def test_the_second_start_traces_nothing_and_gives_the_same_bits(start, tmp_path):
    expected, traced = start(kept=False)
    assert traced and not kept(tmp_path)
    first, traced = start()
    assert traced and len(kept(tmp_path)) == 2
    second, traced = start()
    assert traced == 0
    np.testing.assert_array_equal(expected, first)
    np.testing.assert_array_equal(first, second)

    expected, _ = start(kept=False, model=network(1))
    other, traced = start(model=network(1))
    assert traced == 0 and np.abs(other - first).max() > 1e-3
    np.testing.assert_array_equal(other, expected)

    other, traced = start(config=dataclasses.replace(CONFIG, seed=1))
    assert traced == 0 and np.abs(other - first).max() > 1e-3

    other, traced = start(config=dataclasses.replace(CONFIG, learning_rate=0.5))
    assert traced > 0 and np.abs(other - first).max() > 1e-3


def test_a_table_of_jobs_starts_again_without_a_trace(start, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda name, **_: network(0))
    monkeypatch.setattr(references, "fingerprint", lambda name: name)
    np.savez(tmp_path / "clip.npz", video=np.uint8(255 * STIMULI[0]))
    table = tmp_path / "jobs.csv"
    table.write_text(f"model,stimulus,label\nnetwork,{tmp_path / 'clip.npz'},run\n")
    settings = jobs.Settings("leaps", CONFIG, stride=1)
    videos = []
    for again in (False, True):
        out = tmp_path / f"out{again}"
        start.traced.clear()
        record = jobs.execute(
            table, out, settings, 2, executables=ExecutableCache(tmp_path / "kept")
        )
        assert not record["errors"]
        assert bool(start.traced) != again
        with np.load(out / "rows" / "000" / "000000.npz") as file:
            videos.append(file["videos"])
    np.testing.assert_array_equal(*videos)


def made_of(model=None, config=CONFIG, objective=None):
    """What the engine says of a step."""
    heard = []

    class Listening:
        def traced(self, function, arguments, devices, made_of):
            heard.append(described(made_of))
            out = None
            if made_of[0] == "start":
                out = jax.eval_shape(function, *arguments)
            return Traced(out, lambda: None)

    objective = objective or objectives.leaps(config).without("diversity")
    model = model or network(0)
    setup = update.make_setup(model, None, objective, config)
    engine.Engine(setup, ONE, Listening()).compile(1)
    return heard


@pytest.mark.parametrize(
    "changed",
    [
        {"config": dataclasses.replace(CONFIG, learning_rate=0.2)},
        {"config": dataclasses.replace(CONFIG, margin=0.3)},
        {"config": dataclasses.replace(CONFIG, steps_per_call=1)},
        {"config": dataclasses.replace(CONFIG, octaves=2)},
        {"objective": objectives.cross_entropy()},
        {"objective": 2 * objectives.cross_entropy()},
        {
            "model": dataclasses.replace(
                network(0), module=network(0).module.clone(remat=True)
            )
        },
        {
            "model": dataclasses.replace(
                network(0), spec=dataclasses.replace(network(0).spec, std=(0.5,) * 3)
            )
        },
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_settings_are_other_programs(changed):
    assert made_of() == made_of(model=network(1))
    assert not set(made_of()) & set(made_of(**changed))


def test_what_is_not_of_the_package_is_not_kept(tiny):
    mine = objectives.term("mine", lambda c: jnp.square(c.video).mean((1, 2, 3, 4)))
    tapped = dataclasses.replace(
        network(0), tap_filter=lambda m, name: name == "observe"
    )
    for changed in (
        {"objective": objectives.cross_entropy() + mine},
        {"objective": objectives.priming(lambda depth: 1 - depth)},
        {"model": tapped},
        {"model": tiny},
    ):
        with pytest.raises(LookupError):
            made_of(**changed)

    @functools.wraps(objectives.norm)
    def wrapped(x):
        return 2 * objectives.norm(x)

    with pytest.raises(LookupError):
        described(wrapped)


def test_a_program_is_traced_once_and_still_takes_what_is_donated(doubling):
    assert [doubling() for _ in range(3)] == [1, 0, 0]


def test_cudnn_has_started_before_a_program_from_disk_runs(doubling, monkeypatch):
    """It cannot start inside of a graph; seen on an H200: "No DNN support"."""
    assert doubling() == 1
    started = []
    monkeypatch.setattr(executable_cache, "_start_cudnn", lambda: started.append(True))
    assert doubling() == 0 and not started
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert doubling() == 0 and started


def test_other_arguments_and_surroundings_are_other_programs(doubling, monkeypatch):
    assert doubling() == 1
    assert doubling(shape=(4,)) == 1
    assert doubling(dtype=jnp.bfloat16) == 1
    assert doubling(made_of=("doubling", 2)) == 1
    with jax.default_matmul_precision("default"):
        assert doubling() == 1
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " ")
        assert doubling() == 1
    with monkeypatch.context() as patch:
        patch.setattr(executable_cache, "_machine", lambda: "another")
        assert doubling() == 1
    assert doubling() == 0


def test_what_has_no_description_is_compiled_each_time(doubling, tmp_path):
    assert [doubling(made_of=object()) for _ in range(2)] == [1, 1]
    assert not kept(tmp_path)


def test_only_the_newest_programs_are_kept(doubling, tmp_path, monkeypatch):
    monkeypatch.setattr(executable_cache, "_MOST", 2)
    for shape in ((1,), (2,), (3,)):
        assert doubling(shape=shape) == 1
    assert len(kept(tmp_path)) == 2 and doubling(shape=(3,)) == 0


def test_what_came_from_the_cache_of_jax_is_whole(doubling, tmp_path):
    """On a CPU it cannot be written again."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        doubling(made_of=object())  # leaves it there
        assert any((tmp_path / "jax").iterdir())
        assert [doubling() for _ in range(2)] == [1, 0]
        assert jax.config.jax_enable_compilation_cache
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_sources_are_told_apart(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "one.py").write_text("x = 1")
    before = executable_cache._sources(tmp_path)
    assert executable_cache._sources(tmp_path) == before
    (tmp_path / "models" / "one.py").write_text("x = 2")
    assert executable_cache._sources(tmp_path) != before
    assert any("update.py" in line for line in executable_cache._machine().splitlines())


def test_descriptions_tell_what_was_closed_over():
    made = [objectives.coherence(0.1), objectives.coherence(0.2)]
    made += [objectives.priming(), objectives.cross_entropy(), objectives.l2()]
    assert len({described(objective) for objective in made}) == len(made)
    assert described(objectives.coherence(0.1)) == described(made[0])


def test_the_command_keeps_programs_from_process_to_process(tmp_path):
    loading.save(network(0), tmp_path / "weights")
    np.savez(tmp_path / "clip.npz", video=(255 * STIMULI[0]).astype(np.uint8))
    words = ["--model", "timesformer_small@weights", "--label", "bend", "run"]
    words += ["--stimulus", "clip.npz", "--short", "loop", "--steps", "4"]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "XDG_CACHE_HOME": str(tmp_path),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_LOG_COMPILES": "1",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    videos, lowered = [], []
    for out in ("first", "second"):
        ended = subprocess.run(
            [sys.executable, "-m", "leaps_jax", "synthesize", "--out", out, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert ended.returncode == 0, ended.stderr
        videos.append(np.load(tmp_path / out / "videos.npz")["videos"])
        lowered.append(re.findall(r"MLIR module conversion (\S+)", ended.stderr))
        assert len(list((tmp_path / "leaps_jax" / "programs").iterdir())) == 2
    assert [names.count("jit(_fun)") for names in lowered] == [2, 0]
    # nor is a key made, for a network that nobody initialises
    assert not any("jit(_threefry_seed)" in names for names in lowered)
    np.testing.assert_array_equal(*videos)


def test_a_step_of_a_gpu_is_one_graph_unless_flags_say_otherwise(monkeypatch):
    graph = {"xla_gpu_enable_command_buffer", "xla_gpu_command_buffer_scheduling_mode"}
    names = graph | {"xla_gpu_dot_merger_threshold_mb"}

    class Function:
        def lower(self, *arguments):
            # XLA knows these options, and takes them on any machine
            lowered = jax.jit(jnp.sin).lower(*arguments)
            given = lowered.compile

            def compile_with(compiler_options):
                self.options = compiler_options
                return given(compiler_options=compiler_options)

            lowered.compile = compile_with
            return lowered

    function = Function()
    monkeypatch.setenv("XLA_FLAGS", "")
    executable_cache.compile_for(function, 1.0)
    assert function.options == {"xla_backend_optimization_level": 2}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert executable_cache.compile_for(function, 1.0)(1.0) == pytest.approx(
        np.sin(1.0)
    )
    assert function.options.keys() == names
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_command_buffer_scheduling_mode=LHS")
    executable_cache.compile_for(function, 1.0)
    assert function.options.keys() == names - {"xla_gpu_command_buffer_scheduling_mode"}


def test_the_garbage_collector_is_on_again_after_a_trace():
    seen = []

    def trace(x):
        seen.append(gc.isenabled())
        if len(seen) > 1:
            raise ValueError
        return x

    assert gc.isenabled()
    executable_cache.compile_for(jax.jit(trace), 1.0)
    assert gc.isenabled()
    with pytest.raises(ValueError):
        executable_cache.compile_for(jax.jit(trace), 1)
    assert gc.isenabled() and seen == [False, False]
