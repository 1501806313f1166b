"""Models on disk; the only module that knows Orbax, imported inside functions.

A model's folder holds `variables` (Orbax), `model.json` (the spec, the architecture
and the shape of every tensor) and `moments.npz` if the model has moments. Tensors are
saved and restored as NumPy arrays, so a folder written on eight devices loads on one.
"""

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax import files
from leaps_jax.errors import UserError, listed
from leaps_jax.model import ModelSpec

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """What a model's folder holds.

    Attributes:
      variables: NumPy arrays, as `module.init` would return them.
      spec: of the model.
      architecture: what builds the module again (see `build.architecture`).
      moments: per tap the mean and variance per channel, or None.
      extra: whatever else was given, JSON-able.
    """

    variables: dict[str, Any]
    spec: ModelSpec
    architecture: dict[str, Any]
    moments: dict[str, tuple[Any, Any]] | None
    extra: dict[str, Any]


def save_model(
    folder: str | os.PathLike[str],
    variables: Mapping[str, Any],
    spec: ModelSpec,
    *,
    architecture: Mapping[str, Any],
    moments: Mapping[str, tuple[Any, Any]] | None = None,
    extra: Mapping[str, Any] | None = None,
    half: bool = False,
    overwrite: bool = False,
) -> Path:
    """Writes a model; the folder appears complete or not at all.

    Args:
      folder: to write.
      variables: of the module.
      spec: of the model.
      architecture: what builds the module again (see `build.architecture`).
      moments: per tap the mean and variance per channel, if the model has them.
      extra: anything else worth keeping, JSON-able.
      half: store parameters in bfloat16, in half of the space; `load` gives float32.
      overwrite: replace a folder that exists.

    Returns:
      The folder.

    Raises:
      UserError: the folder exists and `overwrite` is off, or is no model's.
    """
    folder = Path(folder).absolute()
    check_vacant(folder, overwrite)
    tree = jax.tree.map(np.asarray, jax.device_get(_plain(variables)))
    if half:  # running statistics keep their digits
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree["params"])
        tree = tree | {"params": rounded}
    shapes = {
        "/".join(path): list(leaf.shape)
        for path, leaf in flax.traverse_util.flatten_dict(tree).items()
    }
    facts = {
        "format": FORMAT,
        "architecture": dict(architecture),
        "spec": dataclasses.asdict(spec),
        "shapes": shapes,
        "extra": dict(extra or {}),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        partial.chmod(0o755)  # mkdtemp's is private
        with _checkpointer() as checkpointer:
            checkpointer.save(partial / "variables", tree)
        (partial / "model.json").write_text(
            json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8"
        )
        if moments is not None:
            _write_moments(partial / "moments.npz", moments)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            folder.rename(old / "old")
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def check_vacant(folder: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Refuses a folder that `save_model` would: ask before the work, not after.

    Raises:
      UserError: it exists and `overwrite` is off, is no model's, or cannot be written.
    """
    path = Path(folder)
    reason = unwritable(path)
    if reason is None and path.exists():
        if not path.is_dir() or not is_model(path) and any(path.iterdir()):
            reason = "is no model's folder, so it is not overwritten"
        elif not overwrite:
            raise UserError(f"out={str(path)!r}: exists; choose another or --overwrite")
    if reason:
        raise UserError(f"out={str(path)!r}: {reason}; choose another folder")


def unwritable(path: Path) -> str | None:
    """Why nothing can be written at a path, or None where it can."""
    path = path.absolute()
    place = next(p for p in (path, *path.parents) if p.exists())
    if place != path and not place.is_dir():
        return f"cannot be written ({place} is a file)"
    if not os.access(place, os.W_OK):
        return f"cannot be written (no permission in {place})"
    return None


def is_model(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder was written by `save_model`."""
    return (Path(folder) / "model.json").is_file()


def load(folder: str | os.PathLike[str]) -> SavedModel:
    """Reads a model's folder.

    Raises:
      UserError: the folder is missing, incomplete or of a newer format.
    """
    folder = Path(folder).absolute()
    if not is_model(folder):
        raise UserError(f"{folder}: has no model.json, so it is no saved model")
    try:
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        known = facts["format"] <= FORMAT
        if known:
            spec = ModelSpec(**facts["spec"])
            architecture, shapes = facts["architecture"], facts["shapes"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/model.json: is damaged ({error}); make the checkpoint again"
        ) from None
    if not known:
        raise UserError(
            f"{folder}: is of format {facts['format']}, this version reads up to"
            f" {FORMAT}; update leaps_jax"
        )
    try:
        with _checkpointer() as checkpointer:
            variables = checkpointer.restore(folder / "variables")
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{folder}/variables: cannot be read ({reason}); make the checkpoint again"
        ) from None
    variables = jax.tree.map(_full, variables)
    _check_shapes(folder, variables, {k: tuple(v) for k, v in shapes.items()})
    return SavedModel(
        variables,
        spec,
        architecture,
        _read_moments(folder / "moments.npz"),
        facts.get("extra", {}),
    )


def _full(leaf: Any) -> np.ndarray:
    leaf = np.asarray(leaf)
    return leaf.astype(np.float32) if leaf.dtype == jnp.bfloat16 else leaf


def check_fits(folder: Path, variables: Mapping[str, Any], target: Any) -> None:
    """Compares restored variables with the shapes that a module needs.

    Args:
      folder: for the message.
      variables: as `load` returns them.
      target: a tree of shapes, from `jax.eval_shape` of the module's `init`.

    Raises:
      UserError: one line with all that is missing, left over or of another shape.
    """
    flat = flax.traverse_util.flatten_dict(_plain(target))
    _check_shapes(folder, variables, {"/".join(k): v.shape for k, v in flat.items()})


def _check_shapes(
    folder: Path, variables: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    flat = flax.traverse_util.flatten_dict(_plain(variables))
    have = {"/".join(path): tuple(leaf.shape) for path, leaf in flat.items()}
    faults = {
        "missing": [k for k in shapes if k not in have],
        "unknown": [k for k in have if k not in shapes],
        "of another shape": [
            f"{k} {have[k]} instead of {tuple(shapes[k])}"
            for k in shapes
            if k in have and have[k] != tuple(shapes[k])
        ],
    }
    parts = [listed(f"tensors {what}", items) for what, items in faults.items()]
    if any(parts):
        told = "; ".join(filter(None, parts))
        raise UserError(
            f"{folder}: does not fit the model: {told}; make the checkpoint again"
        )


def _plain(tree: Any) -> Any:
    """Nested dicts, whatever mapping Flax gave."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    return tree


def _write_moments(path: Path, moments: Mapping[str, tuple[Any, Any]]) -> None:
    arrays = {}
    for tap, (mean, variance) in moments.items():
        arrays[f"{tap}:mean"] = np.asarray(mean, np.float32)
        arrays[f"{tap}:var"] = np.asarray(variance, np.float32)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _read_moments(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            taps = [key.removesuffix(":mean") for key in file if key.endswith(":mean")]
            return {tap: (file[f"{tap}:mean"], file[f"{tap}:var"]) for tap in taps}
    except Exception as error:  # a damaged zip raises many kinds
        raise UserError(
            f"{path}: is damaged ({error}); make the checkpoint again"
        ) from None


def save_state(folder: str | os.PathLike[str], step: int, state: Any) -> None:
    """Saves the state of a run; the two newest are kept, each complete or absent.

    Of several processes each saves the videos that it holds, to a file of its own;
    they must save the same steps.
    """
    folder, count = Path(folder), jax.process_count()
    folder.mkdir(parents=True, exist_ok=True)
    if count == 1:
        with _states(folder) as manager:
            manager.save(step, args=_standard().StandardSave(_as_tree(state)))
        return
    # Not by Orbax, which writes NumPy arrays on the first process alone.
    own = f"{jax.process_index()}-of-{count}.npz"
    leaves = jax.tree.leaves(state)
    files.write(folder / f"{step}-{own}", lambda file: np.savez(file, *leaves))
    steps = sorted(int(p.name.partition("-")[0]) for p in folder.glob(f"*-{own}"))
    for old in steps[:-2]:
        (folder / f"{old}-{own}").unlink()


def restore_state(folder: str | os.PathLike[str], like: Any) -> Any | None:
    """The newest state of a run as NumPy arrays, or None where there is none.

    Args:
      folder: as for `save_state`; by how many processes it was saved does not matter.
      like: a state of the same run, for the structure and shapes; its `index` says
        which videos are wanted, in ascending order.

    Raises:
      UserError: the folder holds a state of another shape, or lacks some video.
    """
    parts = _newest(Path(folder))
    if not parts:
        return None
    structure, wanted = jax.tree.structure(like), np.asarray(like.index)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(like)]
    pieces = []
    for leaves in parts:
        if len(leaves) == len(shapes):
            chosen = np.isin(jax.tree.unflatten(structure, leaves).index, wanted)
            pieces.append([leaf[chosen] for leaf in leaves])
    joined = [np.concatenate(leaf) for leaf in zip(*pieces, strict=True)]
    if joined:  # in order, and once each: one may also be another process's padding
        index = jax.tree.unflatten(structure, joined).index
        rows = np.unique(index, return_index=True)[1]
        joined = [leaf[rows] for leaf in joined]
    if [leaf.shape for leaf in joined] != shapes:
        raise UserError(
            f"out={os.fspath(folder)!r}: the saved state is of another shape; choose"
            " another folder or --overwrite"
        )
    return jax.tree.unflatten(structure, joined)


def _newest(folder: Path) -> Iterator[list[Any]] | None:
    """The leaves of every part of the last step of which all parts are there."""
    if not folder.exists():
        return None
    with _states(folder, jax.process_count() > 1) as manager:
        whole = manager.latest_step()
    found: dict[tuple[int, int], set[int]] = {}
    for path in folder.iterdir():
        if match := re.fullmatch(r"(\d+)-(\d+)-of-(\d+)\.npz", path.name):
            step, index, count = map(int, match.groups())
            found.setdefault((step, count), set()).add(index)
    step, count = max(
        (key for key, parts in found.items() if len(parts) == key[1]), default=(-1, 0)
    )
    if whole is not None and whole >= step:
        with _states(folder, jax.process_count() > 1) as manager:
            tree = manager.restore(whole, args=_standard().StandardRestore())
        return iter([tree["leaves"]])
    parts = [folder / f"{step}-{index}-of-{count}.npz" for index in range(count)]
    return map(_leaves, parts) if parts else None


def _leaves(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[f"arr_{i}"] for i in range(len(file.files))]


def _as_tree(state: Any) -> dict[str, list[Any]]:
    """The leaves alone: Orbax then needs to know no class of ours or of optax."""
    return {"leaves": jax.tree.leaves(state)}


def _standard() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint.args


def _checkpointer() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint.StandardCheckpointer(multiprocessing_options=_alone())


def _states(folder: Path, read_only: bool = False) -> Any:
    import orbax.checkpoint

    options = orbax.checkpoint.CheckpointManagerOptions(
        max_to_keep=2,
        create=False,
        read_only=read_only,
        enable_async_checkpointing=False,
        multiprocessing_options=_alone(),
    )
    return orbax.checkpoint.CheckpointManager(folder.absolute(), options=options)


def _alone() -> Any:
    """Each of several processes reads and writes by itself and waits for none."""
    import orbax.checkpoint

    index = jax.process_index()
    return orbax.checkpoint.options.MultiprocessingOptions(
        primary_host=index,
        active_processes={index},
        barrier_sync_key_prefix=f"process{index}",
    )
