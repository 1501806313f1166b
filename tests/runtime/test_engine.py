"""The engine compiles each function once, with the compiler options of one process."""

import threading
import types

import jax
import numpy as np
import pytest

from leaps_jax import Config, objectives, synthesis, update
from leaps_jax.runtime import engine, parallel
from leaps_jax.runtime.executable_cache import Traced
from leaps_jax.terms import Primed


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


def test_xla_compiles_while_the_next_function_is_traced(tiny, monkeypatch):
    """Only a call of a function waits for it."""
    traced, allowed, trace = [], threading.Event(), engine.trace

    def slowly_compiled(*args):
        out_info, compile = trace(*args)
        traced.append(threading.current_thread())

        def compile_later():
            assert allowed.wait(60)
            return compile()

        return Traced(out_info, compile_later)

    monkeypatch.setattr(engine, "trace", slowly_compiled)
    stimuli = np.full((1, 4, 32, 32, 3), 0.5, np.float32)
    config = Config(steps=2, steps_per_call=1)
    problem = synthesis.prepare(tiny, stimuli, [0], config=config)
    inverting = engine.Engine(problem, jax.devices()[:1])
    inverting.begin_compile(1)
    assert traced == [threading.current_thread()] * 2  # of the start, and of steps
    allowed.set()
    placed = inverting.place(problem.labels, problem.stimuli)
    assert [snapshot.step for snapshot in inverting.run(1, *placed)] == [1, 2]
    assert len(traced) == 2


def test_a_resumed_run_compiles_its_own_octave_alone(tiny, monkeypatch):
    traced, trace = [], engine.trace

    def counted(*args):
        traced.append(args)
        return trace(*args)

    stimuli = np.full((1, 4, 32, 32, 3), 0.5, np.float32)
    config = Config(steps=2, steps_per_call=1, octaves=2)
    problem = synthesis.prepare(tiny, stimuli, [0], config=config)
    first = next(synthesis.iterate(problem, devices=jax.devices()[:1])).state()
    monkeypatch.setattr(engine, "trace", counted)
    (last,) = synthesis.iterate(problem, first, jax.devices()[:1])
    assert last.step == 2 and len(traced) == 2  # the start, for priming, and the step


def test_what_xla_refuses_is_told_to_who_calls(tiny, monkeypatch):
    def refused(*_):
        raise MemoryError("too large")

    setup = update.make_setup(tiny, None, objectives.l2(), Config(steps=1))
    monkeypatch.setattr(engine, "trace", lambda *_: Traced(_shapes(setup), refused))
    inverting = engine.Engine(setup, jax.devices()[:1])
    inverting.begin_compile(1)
    with pytest.raises(MemoryError, match="too large"):
        inverting.place(np.zeros(1, np.int32), None)


def test_the_first_state_is_made_once(tiny, monkeypatch):
    made, init_state = [], update.init_state

    def counted(*args):
        made.append(args)
        return init_state(*args)

    monkeypatch.setattr(update, "init_state", counted)
    config = Config(steps=2, steps_per_call=1)
    synthesis.synthesize(tiny, np.full((2, 4, 32, 32, 3), 0.5), [0, 1], config=config)
    assert len(made) == 1


def _shapes(setup):
    """Of what the start gives for one video."""
    state = jax.eval_shape(lambda: update.init_state(setup, np.arange(1)))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype, sharding=device),
        (state, Primed()),
    )
