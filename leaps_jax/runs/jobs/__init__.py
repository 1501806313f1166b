"""Large runs: a table of jobs, in batches that are filled across its rows.

The table is a CSV file with the columns of `COLUMNS`, read as a stream; row 0 is the
first below the header. A row alone decides its videos, which are those of one
`synthesize` with its seed and copies, up to rounding; with a verifier, whose moments
are those of a batch, so do the rows that share its batch.

From the bottom up: `table` reads rows, `settings` is what they have in common,
`places` are disks and object stores, `folder` what is written there, `journal` how far
it is, `groups` the models, `batches` decodes and fills, `pipeline` runs it all in this
process. `ray_engine` hands batches to the `crew` of a cluster instead, a `worker` for
each device. `status` tells how far any of them is.

>>> jobs.execute(Path("jobs.csv"), Path("videos"), settings, batch=32)  # doctest: +SKIP
"""

from leaps_jax.runs.jobs.journal import TOO_LARGE
from leaps_jax.runs.jobs.pipeline import execute
from leaps_jax.runs.jobs.settings import Settings
from leaps_jax.runs.jobs.table import COLUMNS, Row, Shard

__all__ = ["COLUMNS", "Row", "Settings", "Shard", "execute", "TOO_LARGE"]
