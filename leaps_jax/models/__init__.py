"""The zoo's architectures, one family a file; they know nothing of LEAPS."""
