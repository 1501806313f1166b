"""References `NAME@WEIGHTS`: a name of the zoo, and which files its weights are.

x3d_xs@actions               weights that come with the package
x3d_xs@weights/x3d           a checkpoint, or a published file or folder
x3d_xs@hf:owner/repo         of the Hugging Face hub; see zoo.hub
x3d_xs@https://host/x.pyth   a file of a server; see zoo.download
"""

import dataclasses
import functools
import hashlib
import os
import re
from pathlib import Path
from typing import NoReturn

from leaps_jax import files
from leaps_jax.errors import UserError, nearest
from leaps_jax.zoo import addresses, checkpoints, download, hub
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo.conversion import sources

# `<model>@<weights>` folders: of an installed package, and of a checkout.
_PACKAGE = Path(__file__).resolve().parent.parent
SHIPPED = (_PACKAGE / "shipped", _PACKAGE.parent / "checkpoints")


@dataclasses.dataclass(frozen=True)
class Located:
    """Weights of a model on this machine.

    Attributes:
      name: of the model, in the zoo.
      path: of a file or folder.
      fetched: where they came from, None where they were here.
    """

    name: str
    path: Path
    fetched: addresses.Fetched | None = None


def located(reference: str) -> Located:
    """Finds the weights of a reference, and fetches those with an address.

    Within a process an address is asked once, so that all that it loads is of one
    commit.

    Raises:
      UserError: there is no such model, or no such weights.
      OSError: an address cannot be reached, or what it holds cannot be written.
    """
    name, at, weights = reference.partition("@")
    if name not in zoo.names():
        raise UserError(f"{name!r} is not in the zoo; {nearest(name, zoo.names())}")
    if not weights:
        given = "no weights given" if not at else "nothing after @"
        raise UserError(f"{given}; {_help(name)}")
    if (address := addresses.parse(weights)) is not None:
        fetched = fetch(address)
        return Located(name, fetched.path, fetched)
    try:
        path = Path(weights).expanduser()
    except RuntimeError:
        what = "there is no such home folder; write the whole path"
        raise UserError(f"{weights}: {what}") from None
    try:
        path.is_dir()
    except OSError as error:  # a name that is too long, or a folder that is closed
        reason = error.strerror or error
        raise UserError(
            f"{weights}: cannot be read ({reason}); give another path"
        ) from None
    if path.is_file() or checkpoints.is_model(path):
        return Located(name, path)
    if os.path.basename(weights) == weights and weights in shipped(name):
        return Located(name, shipped(name)[weights])
    if not path.exists():
        _refuse(name, weights)
    return Located(name, path)


@functools.lru_cache(maxsize=256)
def fetch(address: addresses.Address) -> addresses.Fetched:
    """Fetches what an address means, unless it is among the user's caches.

    Raises:
      UserError, OSError: as `hub.fetch` and `download.fetch` do.
    """
    if isinstance(address, addresses.HubAddress):
        return hub.fetch(address)
    return download.fetch(address)


def pinned(reference: str) -> str | None:
    """A reference that means the same weights for ever; None for those of a path.

    Raises:
      UserError, OSError: as `located` does.

    >>> pinned("x3d_xs@hf:me/x3d_xs")                             # doctest: +SKIP
    'x3d_xs@hf:me/x3d_xs@8f1c...'
    """
    found = located(reference)
    return f"{found.name}@{found.fetched.pinned}" if found.fetched else None


def written(place: str) -> str:
    """What to write after @ for a place where weights are published.

    >>> written("https://huggingface.co/google/vivit-b-16x2-kinetics400")
    'hf:google/vivit-b-16x2-kinetics400'
    """
    on_hub = re.fullmatch("https://huggingface.co/([^/]+/[^/]+)", place)
    return f"hf:{on_hub[1]}" if on_hub else place


def fingerprint(reference: str) -> str:
    """A digest of the files behind a reference: other weights have another.

    A copy of the files has the same; weights that were converted anew need not. Files
    are read at the first call, and then only where they were touched since.

    Raises:
      UserError: there is no such model, or no such weights.

    >>> fingerprint("x3d_xs@actions")                             # doctest: +SKIP
    '5f0c...'
    """
    path = located(reference).path
    digest = hashlib.sha256()
    for file in _files(path):
        content = bytes.fromhex(files.sha256(file))
        digest.update(os.fsencode(file.relative_to(path)) + b"\0" + content)
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    """The files of weights; what else lies in their folder does not count."""
    if not path.is_dir():
        return [path]
    if checkpoints.is_model(path):
        return checkpoints.files_of(path)
    return sources.files_of(path)


def shipped(name: str) -> dict[str, Path]:
    """The weights that come with the package for a model: {weights: folder}."""
    return {
        path.name.partition("@")[2]: path
        for place in reversed(SHIPPED)  # the package's own win
        if place.is_dir()
        for path in sorted(place.glob(f"{name}@*"))
        if checkpoints.is_model(path)
    }


def _refuse(name: str, weights: str) -> NoReturn:
    known = shipped(name)
    hint = f"{nearest(weights, known)}; " if known else ""
    raise UserError(f"{weights}: no such file or folder; {hint}{_help(name)}")


def _help(name: str) -> str:
    known = shipped(name)
    if known:
        return f"write {name}@{next(iter(known))}, or {name}@PATH to weights of yours"
    where = zoo.entry(name).weights
    if where:
        return f"write {name}@PATH to a weight file, or {name}@{written(where[0])}"
    return f"write {name}@PATH to a checkpoint (see leaps-jax train)"
