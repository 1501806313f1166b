"""Devices, processes and compiled programs: where and how a computation runs."""
