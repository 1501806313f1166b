"""Devices, processes and executables: where and how a computation runs."""
