"""Unpickles arrays and plain containers, and nothing that could run code.

A pickle names the functions that it calls; only those listed here are called, and none
takes memory for more than the pickle holds.
"""

import pickle
from typing import Any

import numpy as np

_NDARRAY = "numpy.ndarray"  # a pickle can neither call nor change a string
_MULTIARRAY = (
    "numpy.core.multiarray",
    "numpy._core.multiarray",
)  # until NumPy 2, since
# All that a pickle of NumPy arrays needs besides.
_HARMLESS = {
    ("numpy", "dtype"),
    *((module, "scalar") for module in _MULTIARRAY),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}


class Refused(Exception):
    """A pickle asked for something that is not harmless."""


class HarmlessUnpickler(pickle.Unpickler):
    """Refuses whatever is not NumPy's arrays, numbers, text and containers."""

    def load(self) -> Any:
        """Reads a pickle.

        Raises:
          Refused: it asks for something else.
          Exception: of almost any kind, where it is damaged.
        """
        try:
            return super().load()
        except MemoryError:  # of a length in it, which no file has
            raise pickle.UnpicklingError("it claims more than it holds") from None

    def find_class(self, module: str, name: str) -> Any:
        """Resolves a name of the pickle.

        Raises:
          Refused: it is none of those listed.
        """
        if (module, name) == ("numpy", "ndarray"):
            return _NDARRAY
        if name == "_reconstruct" and module in _MULTIARRAY:
            return self._empty
        if (module, name) not in _HARMLESS:
            raise Refused(f"{module}.{name}")
        return super().find_class(module, name)

    # Methods, as attributes of a function could be set by the pickle.
    def _empty(self, kind: str, shape: tuple[int, ...], code: Any) -> np.ndarray:
        """An array that the pickle then fills; NumPy's own could be of any size."""
        if kind != _NDARRAY or shape != (0,):
            raise Refused(f"an array of shape {shape} without content")
        return np.empty(0, code)
