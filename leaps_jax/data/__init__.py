"""Clips that come in: files, folders, class trees, data sets and renderings."""
