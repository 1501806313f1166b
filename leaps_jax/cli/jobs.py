"""`leaps-jax synthesize --jobs`: the videos of a table."""

import argparse
import shlex
import sys

from leaps_jax.cli import arguments, inputs
from leaps_jax.errors import UserError, check_known
from leaps_jax.runs import jobs
from leaps_jax.runs.jobs import ray_engine

#: Options of synthesize that a table rules out, and the remedies.
RULED_OUT = {
    **dict.fromkeys(
        ("verifier", "stimulus", "label", "copies", "seed"),
        "every row gives its own; make it a column",
    ),
    "coordinator": "no process waits for another; leave it out",
    "judge": "leave it out",
    "objective": "a run of its own looks at it; leave it out",
    "save_every": "rows are saved as they finish; leave it out",
    "preview_every": "leave it out",
    "tensorboard": "leave it out",
    "overwrite": "rows are never written twice; choose another folder",
}


_SHARDS = ("shard", "process", "processes")
_OF_RAY = ("devices_per_worker", "workers")


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the options that only a table takes."""
    sub.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="with --jobs: videos on all devices at a time,"
        f" {arguments.BATCH} by default",
    )
    sub.add_argument(
        "--engine",
        metavar="local|ray",
        help="with --jobs: what runs it, this process (local, by default) or workers"
        " on the machines of a Ray cluster: that of RAY_ADDRESS, or else one on this"
        " machine, which needs `pip install 'leaps_jax[ray]'`. DIR must be on a disk"
        " that they share",
    )
    sub.add_argument(
        "--devices-per-worker",
        type=int,
        metavar="N",
        help="with --engine ray: devices of one machine that share a batch; 1 by"
        " default",
    )
    sub.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="with --engine ray: how many; by default, those that have devices",
    )
    sub.add_argument(
        "--shard",
        metavar="I/N",
        help="with --jobs: do rows I-1, I-1+N, I-1+2N and so on, I from 1 to N; by"
        " default those of --process among --processes, which need no --coordinator",
    )


def run(options: argparse.Namespace, defaults: argparse.Namespace) -> int:
    """Makes the videos; `defaults` has the options as they are when left out."""
    _check(options, defaults)
    shared = ("method", "frames", "size", "stride", "short", "dtype", "remat")
    settings = jobs.Settings(
        config=inputs.config(options),
        data_dir=options.data_dir,
        **{name: getattr(options, name) for name in shared},
    )
    batch = arguments.BATCH if options.batch is None else options.batch
    where = (options.jobs, options.out, settings, batch)
    if options.engine == "ray":
        devices = options.devices_per_worker
        record = ray_engine.execute(
            *where, 1 if devices is None else devices, options.workers
        )
    else:
        shard = options.shard
        if shard is None and None not in (options.process, options.processes):
            shard = f"{options.process + 1}/{options.processes}"
        record = jobs.execute(*where, jobs.Shard.parse(shard), inputs.executables())
    if record["failed"] and not record["finished"] + record["done_before"]:
        if all(line.endswith(jobs.TOO_LARGE) for line in record["errors"]):
            raise MemoryError
    said, out = list(record["errors"]), str(options.out).rstrip("/")
    if record["failed"]:
        rows = "row" if record["failed"] == 1 else "rows"
        failures = f"{out}/{record['failures']}"
        said.append(f"{record['failed']} {rows} failed: {failures}")
    if record["batches"] > 1:
        idle = f"{record['idle_share']:.2%} of the time after the first batch"
        said.append(f"{record['batches']} batches; devices waited for {idle}")
    for line in said:
        print(line, file=sys.stderr)
    done = record["done_before"] + record["finished"]
    print(f"results: {done} of {record['rows']} rows in {out}/rows")
    if record["status"] == "stopped":
        line = f"stopped; the same command goes on with {out}"
        print(line, file=sys.stderr)
        return 130
    return 1 if record["failed"] else 0


def _check(options: argparse.Namespace, defaults: argparse.Namespace) -> None:
    """Refuses options that do not go with a table."""
    for name, remedy in RULED_OUT.items():
        given = getattr(options, name)
        if given != getattr(defaults, name):
            values = given if isinstance(given, list) else [given]
            words = [str(value) for value in values if value is not True]
            flag = shlex.join(["--" + name.replace("_", "-"), *words])
            raise UserError(f"{flag}: not together with --jobs; {remedy}")
    ray = options.engine == "ray"
    check_known("engine", options.engine or "local", ("local", "ray"))
    for name in _SHARDS if ray else _OF_RAY:
        if getattr(options, name) is not None:
            given = f"--{name.replace('_', '-')} {getattr(options, name)}"
            remedy = "all workers share the table" if ray else "it is for --engine ray"
            raise UserError(f"{given}: not with this engine, {remedy}; leave it out")
    if any(text.partition("=")[0] == "seed" for text in options.set):
        raise UserError(f"--set seed: not together with --jobs; {RULED_OUT['seed']}")
