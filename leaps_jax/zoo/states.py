"""States of long work on disk, from which it goes on after it was interrupted.

A folder holds the two last states, each complete or absent and with a checksum. Where
the last one cannot be read, work goes on from the one before, or from its start.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from leaps_jax import files
from leaps_jax.errors import UserError
from leaps_jax.zoo.checkpoints import checkpointer, digest, writing

_KEPT = 2


def save(folder: str | os.PathLike[str], step: int, state: Any) -> None:
    """Saves a state; those of this step and later are forgotten: it is done again.

    Of several processes each saves the videos that it holds, to a file of its own;
    they must save the same steps.

    Raises:
      OSError: it cannot be written; the states before it are still there.
    """
    folder, count = Path(folder), jax.process_count()
    folder.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree.leaves(state)
    if count == 1:
        for path in folder.iterdir():
            if _is_begun(path) or path.name.isdecimal() and int(path.name) >= step:
                shutil.rmtree(path)
        tree = {"leaves": leaves, "digest": _digest(leaves)}
        with writing(folder, tree), checkpointer() as orbax:
            orbax.save(folder.absolute() / str(step), tree)
        for old in _wholes(folder)[_KEPT:]:
            shutil.rmtree(folder / str(old))
        return
    # Not by Orbax, which writes NumPy arrays on the first process alone.
    own = f"{jax.process_index()}-of-{count}.npz"
    files.write(folder / f"{step}-{own}", lambda file: np.savez(file, *leaves))
    steps = sorted(int(p.name.partition("-")[0]) for p in folder.glob(f"*-{own}"))
    for old in steps[:-_KEPT]:
        (folder / f"{old}-{own}").unlink()


def restore(folder: str | os.PathLike[str], like: Any) -> Any | None:
    """The last readable state of one process as NumPy arrays, or None.

    Args:
      folder: as for `save`.
      like: a state of the same work, for the structure and shapes.

    Raises:
      UserError: the folder holds a state of another shape.
    """
    return _restored(folder, like, lambda parts: next(parts))


def restore_videos(folder: str | os.PathLike[str], like: Any) -> Any | None:
    """The last readable state of videos as NumPy arrays, or None where there is none.

    Args:
      folder: as for `save`; by how many processes it was saved does not matter.
      like: a state of the same run, for the structure and shapes; its `index` says
        which videos are wanted, in ascending order.

    Raises:
      UserError: the folder holds a state of another shape, or lacks some video.
    """
    structure, wanted = jax.tree.structure(like), np.asarray(like.index)
    count = len(jax.tree.leaves(like))

    def joined(parts: Iterator[list[Any]]) -> list[Any]:
        pieces = []
        for leaves in parts:
            if len(leaves) == count:
                chosen = np.isin(jax.tree.unflatten(structure, leaves).index, wanted)
                pieces.append([leaf[chosen] for leaf in leaves])
        whole = [np.concatenate(leaf) for leaf in zip(*pieces, strict=True)]
        if whole:  # in order, and once each: one may also be another process's padding
            index = jax.tree.unflatten(structure, whole).index
            rows = np.unique(index, return_index=True)[1]
            whole = [leaf[rows] for leaf in whole]
        return whole

    return _restored(folder, like, joined)


def _restored(
    folder: str | os.PathLike[str],
    like: Any,
    join: Callable[[Iterator[list[Any]]], list[Any]],
) -> Any | None:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(like)]
    for parts in _saved(Path(folder)):
        try:
            leaves = join(parts)
        except MemoryError:
            raise
        except Exception:  # of a damaged file, Orbax, TensorStore, zip raise many kinds
            continue
        if [leaf.shape for leaf in leaves] != shapes:
            raise UserError(
                f"out={os.fspath(Path(folder).parent)!r}: the saved state is of another"
                " shape; choose another folder or --overwrite"
            )
        return jax.tree.unflatten(jax.tree.structure(like), leaves)
    return None


def _saved(folder: Path) -> Iterator[Iterator[list[Any]]]:
    """The leaves of the parts of each state, the last state first; read when used."""
    if not folder.is_dir():
        return
    found: dict[tuple[int, int], set[int]] = {}
    for path in folder.iterdir():
        if match := re.fullmatch(r"(\d+)-(\d+)-of-(\d+)\.npz", path.name):
            step, index, count = map(int, match.groups())
            found.setdefault((step, count), set()).add(index)
    states: list[tuple[int, Iterator[list[Any]]]] = [
        (step, map(_leaves, [folder / str(step)])) for step in _wholes(folder)
    ]
    for (step, count), indices in found.items():
        if len(indices) == count:
            parts = [folder / f"{step}-{i}-of-{count}.npz" for i in range(count)]
            states.append((step, map(_leaves, parts)))
    for _, leaves in sorted(states, key=lambda state: -state[0]):
        yield leaves


def _wholes(folder: Path) -> list[int]:
    """The steps of the states that one process saved, the last first."""
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdecimal()]
    return sorted(steps, reverse=True)


def _is_begun(path: Path) -> bool:
    """Whether a path is what a kill left of a state that Orbax was writing."""
    return re.fullmatch(r"\d+\.orbax-checkpoint-tmp.*", path.name) is not None


def _leaves(path: Path) -> list[np.ndarray]:
    if path.is_dir():
        with checkpointer() as orbax:
            tree = orbax.restore(path.absolute())
        if not np.array_equal(tree["digest"], _digest(tree["leaves"])):
            raise ValueError("its checksum is another")
        return tree["leaves"]
    # A zip has checksums. NumPy leaves a damaged one open that it opened itself.
    with path.open("rb") as file, np.load(file) as held:
        return [held[f"arr_{i}"] for i in range(len(held.files))]


def _digest(leaves: list[Any]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(digest(leaves)), np.uint8)
