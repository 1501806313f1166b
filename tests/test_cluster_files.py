"""Files of docs/cluster for Slurm and Kubernetes do all shards, each of them once."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from leaps_jax.cli import arguments, synthesize
from leaps_jax.runs.jobs import Shard

CLUSTER = Path(__file__).parent.parent / "docs" / "cluster"


@pytest.fixture
def shard_of(tmp_path):
    """The shard that the `leaps-jax` does which a shell calls; nothing is installed."""
    words = tmp_path / "words"
    scripts = {"leaps-jax": f'printf "%s\\n" "$@" > {words}', "pip": ""}
    for name, line in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"

    def called(command: list[str], **variables: object) -> Shard:
        more = {name: str(value) for name, value in variables.items()}
        subprocess.run(command, env=os.environ | {"PATH": path} | more, check=True)
        parser = arguments.parser(synthesize.add)
        options = parser.parse_args(words.read_text().splitlines())
        assert str(options.jobs) == "jobs.csv" and str(options.out) == "videos"
        assert (options.batch, options.steps) == (32, 500)
        if options.shard:
            return Shard.parse(options.shard)
        return Shard(options.process + 1, options.processes)

    return called


def test_slurm(shard_of):
    script = CLUSTER / "slurm.sh"
    assert "#SBATCH --array=1-8\n" in script.read_text()
    words = "jobs.csv videos/ --batch 32 --steps 500".split()
    command = ["bash", str(script), *words]
    for number in range(1, 9):
        given = {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": 8}
        assert shard_of(command, **given) == Shard(number, 8)


def test_kubernetes(shard_of):
    job = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text())["spec"]
    assert job["completionMode"] == "Indexed"
    (container,) = job["template"]["spec"]["containers"]
    command = [*container["command"], *container["args"]]
    for index in range(job["completions"]):
        shard = shard_of(command, JOB_COMPLETION_INDEX=index)
        assert shard == Shard(index + 1, job["completions"])


def test_ray():
    """Its comment submits the command, and all machines get Ray."""
    text = (CLUSTER / "ray.yaml").read_text()
    cluster = yaml.safe_load(text)
    assert "leaps_jax[cuda,ray]" in cluster["setup_commands"][0]
    lines = [line.removeprefix("#").rstrip(" \\") for line in text.splitlines()]
    command = " ".join(lines).partition("-- leaps-jax ")[2].partition("\n")[0]
    words = command[: command.index("--engine ray") + len("--engine ray")].split()
    assert arguments.parser(synthesize.add).parse_args(words).engine == "ray"
