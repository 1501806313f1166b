"""`python -m leaps_jax`: the command `leaps-jax`."""

import sys

from leaps_jax.cli.commands import main

sys.exit(main())
