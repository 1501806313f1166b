"""Which worker does which batch, on simulated devices: few compile, none waits."""

import contextlib
import itertools
from types import SimpleNamespace

import pytest
from job_tables import write

pytest.importorskip("ray")

from ray_simulated import Simulated

from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import crew, ray_engine
from leaps_jax.runs.jobs.folder import Folder
from leaps_jax.runs.jobs.table import survey

BATCH, WORKERS = 8, 8


@pytest.fixture
def simulate(tmp_path, monkeypatch):
    """Runs a table of (model, number of rows) on simulated workers."""

    def run(kinds, ray, interleaved=True):
        rows = [
            [{"model": f"m@{model}", "stimulus": "c", "label": "0"}] * count
            for model, count in kinds
        ]
        order = itertools.zip_longest(*rows) if interleaved else rows
        rows = [row for some in order for row in some if row]
        table = survey(write(tmp_path / "jobs.csv", rows))
        folder = Folder(tmp_path / "out", jobs.Shard(1, 1), {})
        folder.open({})
        monkeypatch.setattr(ray_engine, "time", ray)
        monkeypatch.setattr(crew, "time", ray)
        quiet = SimpleNamespace(tell=lambda _: None)
        monkeypatch.setattr(ray_engine, "_Metrics", lambda _: quiet)
        workers = crew.Crew(ray, (), "CPU", 1, None)
        with contextlib.closing(table):
            record = ray_engine._Run(ray, table, folder, BATCH, workers).go()
        assert record["finished"] == len(rows)
        return record

    return run


@pytest.mark.parametrize("interleaved", [True, False])
def test_four_models_keep_eight_devices_busy(simulate, interleaved):
    """They take different times, and a model is compiled on two devices."""
    seconds = {f"m@{model}": 20.0 + 10 * model for model in range(4)}
    ray = Simulated(WORKERS, lambda batch, _: seconds[batch.group[0]])
    kinds = [(model, 100 * BATCH) for model in range(4)]
    record = simulate(kinds, ray, interleaved)
    assert record["batches"] == 400
    assert record["idle_share"] < 0.05
    begun = [actor.compiled[0] for actor in ray.actors]
    assert {begun.count(group) for group in begun} == {2}
    assert sum(len(actor.compiled) for actor in ray.actors) <= 16


def test_a_worker_prepares_its_next_model_while_it_works(simulate):
    """It takes 60 seconds, and two models of a worker come one after the other."""
    ray = Simulated(2, lambda batch, _: 20.0)
    simulate([(model, 20 * BATCH) for model in range(4)], ray)
    for actor in ray.actors:
        assert len(actor.compiled) >= 2
        runs = itertools.pairwise(actor.runs)
        assert max(later[0] - before[1] for before, later in runs) < 3


def test_a_slow_machine_does_less(simulate):
    """One takes twenty times as long: others do its share, and do not wait for it."""
    ray = Simulated(WORKERS, lambda batch, number: 400.0 if number == 3 else 20.0)
    simulate([(0, 200 * BATCH)], ray)
    assert len(ray.actors[3].runs) <= 3  # one that it did, and two that others did
    assert ray.now < 80 + 200 / 7 * 20 + 60
