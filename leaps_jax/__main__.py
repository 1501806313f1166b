"""`python -m leaps_jax`: the command `leaps-jax`."""

from leaps_jax.cli.main import entry

entry()
