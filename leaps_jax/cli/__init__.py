"""The command `leaps-jax`: its arguments and what each of its commands does."""
