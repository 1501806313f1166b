"""From published weight files to variables of this project's modules."""
