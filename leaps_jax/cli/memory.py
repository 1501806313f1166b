"""The error of a command that does not fit the memory."""

import argparse

from leaps_jax.cli import arguments
from leaps_jax.errors import out_of_memory

#: Of a command: the argument that sets how much it needs, and the remedy.
ARGUMENTS = {
    "train": ("batch", "lower it, --frames or --size"),
    "accuracy": ("batch", "lower it"),
    "bench": ("batch", "lower it, or use --remat"),
    "synthesize": (
        "copies",
        "lower it, give fewer stimuli, use --remat, or --jobs with a --batch",
    ),
    "synthesize --jobs": ("batch", "lower it, or use --remat"),
}


def too_large(options: argparse.Namespace, error: BaseException) -> str | None:
    """An out-of-memory error as one line; None for any other error."""
    if not out_of_memory(error):
        return None
    command = options.command + (" --jobs" if getattr(options, "jobs", None) else "")
    if command not in ARGUMENTS:
        said = "does not suffice; end other programs, or take a smaller model"
        return f"leaps-jax: error: memory: {said}"
    argument, remedy = ARGUMENTS[command]
    given = getattr(options, argument)
    if given is None:  # --jobs without --batch
        given = arguments.BATCH
    return f"leaps-jax: error: {argument}={given}: does not fit the memory; {remedy}"
