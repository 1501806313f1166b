"""Whose work a folder holds, and a lock on it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax

from leaps_jax import files
from leaps_jax.errors import UserError
from leaps_jax.version import __version__


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes off a folder, which is made if missing.

    Raises:
      UserError: another process works in it.
      OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / ".lock") as free:
        if not free:
            raise UserError(
                f"out={str(folder)!r}: another process works in it; wait for that, or"
                " choose another folder"
            )
        yield


def check_links(folder: Path) -> None:
    """Raises UserError where a link in a folder would lead out of it."""
    if folder.is_dir() and (link := files.first_link(folder)):
        raise UserError(
            f"out={str(folder)!r}: {link} is a link, which is not followed; remove it"
            " or choose another folder"
        )


def check_same(
    folder: Path, held: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Refuses a folder that holds work of another identity.

    Raises:
      UserError: names what differs.
    """
    if changed := differences(held, identity):
        raise UserError(
            f"out={str(folder)!r}: holds another run (it differs in"
            f" {', '.join(changed)}); choose another folder or --overwrite"
        )


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The keys with other values.

    >>> differences({"steps": 5, "size": 32}, {"steps": 6, "size": 32})
    ['steps']
    """
    return [k for k in {**a, **b} if a.get(k) != b.get(k)]


def plain(value: Any) -> Any:
    """A value as JSON gives it back: lists for tuples, strings for keys.

    >>> plain({"size": (32, 32)})
    {'size': [32, 32]}
    """
    return json.loads(json.dumps(value))


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {
        "leaps_jax": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
    }
