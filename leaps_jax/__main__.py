"""`python -m leaps_jax`: the command `leaps-jax`."""

import sys

from leaps_jax.cli.main import main

sys.exit(main())
