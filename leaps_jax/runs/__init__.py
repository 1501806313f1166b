"""Folders and pictures of runs, and large runs from tables."""
