"""A worker of a run on several machines, without an engine around it."""

import contextlib

from job_tables import SETTINGS, results

from leaps_jax.runs.jobs.folder import Folder
from leaps_jax.runs.jobs.table import Shard, survey
from leaps_jax.runs.jobs.worker import Batch, Worker
from leaps_jax.zoo import load as loading


def test_what_was_prepared_is_not_made_again(tmp_path, models, table, monkeypatch):
    out = tmp_path / "out"
    with contextlib.closing(survey(table)) as found:
        identity = SETTINGS.identity(found, 2)
        Folder(out, Shard(1, 1), identity).open({}, found.facts())
        row = found.row(0)
    worker = Worker(out, identity, SETTINGS, 2, "CPU")
    worker.prepare("unknown@0", row.verifier)  # a batch of it would say so
    worker.prepare(row.model, row.verifier)
    traced = len(models)
    assert traced > 0
    monkeypatch.setattr(loading, "load_model", None)
    done = worker.do(Batch(1, (row.model, row.verifier), ((row, (0,)),)))
    assert done.finished == (0,) and not done.failed
    assert len(models) == traced
    assert list(results(out)) == [0]
