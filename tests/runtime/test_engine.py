"""The engine compiles each function once, with the compiler options of one process."""

import types

import jax

from leaps_jax import Config, objectives, update
from leaps_jax.runtime import engine, parallel
from leaps_jax.runtime.executable_cache import Traced


def test_steps_over_processes_have_the_options_of_the_compiler(tiny, monkeypatch):
    devices = [*jax.devices()[:1], types.SimpleNamespace(process_index=1)]
    setup = update.make_setup(tiny, None, objectives.l2(), Config())
    traced = lambda *args: Traced("out", lambda: ("compiled", args))  # noqa: E731
    monkeypatch.setattr(engine, "trace", traced)
    monkeypatch.setattr(parallel, "on_local_arrays", lambda *args: ("local", args))
    over_two = engine.Engine(setup, devices)
    got = over_two._compile(("steps",), lambda: "function", "state", "batch")
    assert got.out_info == "out"
    compiled = ("compiled", ("function", "state", "batch"))
    assert got.executable.result() == ("local", (compiled, devices))
