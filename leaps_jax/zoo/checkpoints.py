"""Models on disk; the only module that knows Orbax, imported inside functions.

A model's folder holds `variables` (Orbax), `moments.npz` if the model has moments, and
`model.json`: the spec, the architecture, and the shape and a checksum of every tensor,
since Orbax keeps none. Tensors are saved and restored as NumPy arrays, so a folder
written on eight devices loads on one.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax import files, schemas
from leaps_jax.errors import UserError, listed
from leaps_jax.model import ModelSpec, Moments

FORMAT = 1
#: In the order in which they are put in place: model.json says that all are there.
_CONTENTS = ("variables", "moments.npz", "model.json")
_BESIDE = 2**18  # bytes that Orbax writes beside the arrays, at most
_PARTIAL = ".new-"  # begins the name of a folder in which a model is written


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """The content of a model's folder.

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
    moments: Moments | None = None,
    extra: Mapping[str, Any] | None = None,
    half: bool = False,
    overwrite: bool = False,
) -> Path:
    """Writes a model; the folder holds it complete or not at all.

    Args:
      folder: to write; other files in it stay as they are.
      variables: of the module.
      spec: of the model.
      architecture: what builds the module again (see `build.architecture`).
      moments: per tap the mean and variance per channel, if the model has them.
      extra: anything else worth keeping, JSON-able.
      half: store parameters in bfloat16, in half of the space; `load` gives float32.
      overwrite: replace the model of a folder that exists.

    Returns:
      The folder.

    Raises:
      UserError: the folder exists and `overwrite` is off, or is no model's; or a tensor
        has values that no trained one has.
      OSError: it cannot be written; a model that was there still is.
    """
    folder = Path(folder).absolute()
    check_vacant(folder, overwrite)
    tree = jax.tree.map(np.asarray, jax.device_get(_plain(variables)))
    check_values(flat_tensors(tree))
    if half:  # running statistics keep their digits
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree["params"])
        tree = tree | {"params": rounded}
    tensors = flat_tensors(tree)
    facts = {
        "format": FORMAT,
        "architecture": dict(architecture),
        "spec": dataclasses.asdict(spec),
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "digests": {name: digest(tensor) for name, tensor in tensors.items()},
        "extra": dict(extra or {}),
    }
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with files.locked(folder / ".model.lock") as free:
            if not free:
                raise UserError(f"out={str(folder)!r}: is being written; wait for that")
            _put_in_place(folder, tree, moments, facts)
    except BaseException:
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return folder


def _put_in_place(
    folder: Path, tree: Any, moments: Moments | None, facts: dict[str, Any]
) -> None:
    """Writes a model within its folder, then puts it in the place of another there."""
    for left in folder.glob(f"{_PARTIAL}*"):  # by a kill
        shutil.rmtree(left)
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
    try:
        with writing(folder, tree), checkpointer() as orbax:
            orbax.save(partial / "variables", tree)
        if moments is not None:
            _write_moments(partial / "moments.npz", moments)
        (partial / "model.json").write_bytes(_json(facts))
        # From here on nothing needs room. Without model.json there is no model.
        (folder / "model.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "variables", ignore_errors=True)
        (folder / "moments.npz").unlink(missing_ok=True)
        for name in _CONTENTS:
            if (partial / name).exists():
                (partial / name).rename(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _json(facts: dict[str, Any]) -> bytes:
    """Names as they are; with escapes where a path in a command is no UTF-8."""
    try:
        return json.dumps(facts, indent=1, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(facts, indent=1).encode()


def check_vacant(folder: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Refuses a folder that `save_model` would: ask before the work, not after.

    Raises:
      UserError: it exists and `overwrite` is off, is no model's, or cannot be written.
    """
    path = Path(folder)
    reason = unwritable(path)
    if reason is None and path.exists():
        if not path.is_dir() or not is_model(path) and _foreign(path):
            reason = "is no model's folder, so it is not overwritten"
        elif is_model(path) and not overwrite:
            raise UserError(f"out={str(path)!r}: exists; choose another or --overwrite")
    if reason:
        raise UserError(f"out={str(path)!r}: {reason}; choose another folder")


def _foreign(folder: Path) -> bool:
    """Whether a folder without a model holds what `save_model` did not write."""
    names = {path.name for path in folder.iterdir() if path.name[0] != "."}
    killed = any(folder.glob(f"{_PARTIAL}*"))  # while it put a model in place
    return bool(names.difference(_CONTENTS if killed else ()))


def unwritable(path: Path) -> str | None:
    """Why nothing can be written at a path, or None where it can."""
    if "\0" in str(path):
        return "is no path (it has a null byte)"
    path = path.absolute()
    try:
        place = next(p for p in (path, *path.parents) if p.exists())
    except OSError as error:  # a name that is too long, say
        return f"cannot be written ({error.strerror})"
    if place != path and not place.is_dir():
        return f"cannot be written ({place} is a file)"
    if not os.access(place, os.W_OK):
        return f"cannot be written (no permission in {place})"
    return None


def is_model(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder was written by `save_model`."""
    return (Path(folder) / "model.json").is_file()


def is_part(name: str) -> bool:
    """Whether a path within a model's folder is one of the model's files.

    >>> is_part("variables/d/1f"), is_part("README.md")
    (True, False)
    """
    return name.partition("/")[0] in _CONTENTS


def files_of(folder: Path) -> list[Path]:
    """The files that a saved model is made of, in the order of their names."""
    paths = [folder / name for name in _CONTENTS]
    paths += (folder / "variables").rglob("*")
    return sorted(path for path in paths if path.is_file())


def extra(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The `extra` of a saved model; {} where there is none to be read."""
    try:
        return _facts(Path(folder)).extra
    except (OSError, UserError):
        return {}


def _facts(folder: Path) -> schemas.ModelFile:
    """The content of model.json."""
    path, again = folder / "model.json", "make the checkpoint again"
    found = schemas.read(path, schemas.Format, again).format
    if found > FORMAT:
        raise UserError(
            f"{folder}: is of format {found}, this version reads up to {FORMAT}; update"
            " leaps_jax"
        )
    return schemas.read(path, schemas.ModelFile, again)


def load(folder: str | os.PathLike[str]) -> SavedModel:
    """Reads a model's folder.

    Raises:
      UserError: the folder is missing, incomplete, damaged or of a newer format, or a
        tensor has values that no trained one has.
    """
    folder = Path(folder).absolute()
    if not is_model(folder):
        raise UserError(f"{folder}: has no model.json, so it is no saved model")
    facts = _facts(folder)
    try:
        spec = ModelSpec(**facts.spec.model_dump())
    except UserError as error:  # numbers that do not go together
        raise UserError(
            f"{folder}/model.json: {error}; make the checkpoint again"
        ) from None
    try:
        with checkpointer() as orbax:
            variables = orbax.restore(folder / "variables")
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise UserError(
            f"{folder}/variables: cannot be read ({_reason(error)}); make the"
            " checkpoint again"
        ) from None
    shapes = {name: tuple(shape) for name, shape in facts.shapes.items()}
    _check_shapes(folder, variables, shapes)
    tensors = flat_tensors(variables)
    damaged = [
        name
        for name, known in facts.digests.items()
        if name not in tensors or digest(tensors[name]) != known
    ]
    try:
        if damaged:
            raise UserError(listed("tensors are damaged", damaged, most=3))
        check_values(tensors)
    except UserError as error:
        raise UserError(f"{folder}: {error}; make the checkpoint again") from None
    variables = jax.tree.map(_full, variables)
    return SavedModel(
        variables,
        spec,
        facts.architecture.model_dump(),
        _read_moments(folder / "moments.npz"),
        facts.extra,
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
    shapes = {name: x.shape for name, x in flat_tensors(target).items()}
    _check_shapes(folder, variables, shapes)


def _check_shapes(
    folder: Path, variables: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    have = {name: tuple(x.shape) for name, x in flat_tensors(variables).items()}
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


def check_values(tensors: Mapping[str, np.ndarray]) -> None:
    """Refuses values that no trained weights have.

    Args:
      tensors: by names that end in the name of the leaf, such as `norm/var`.

    Raises:
      UserError: a tensor is not floating-point or not finite, or a variance negative.

    >>> check_values({"norm/var": np.array([-1.0])})
    Traceback (most recent call last):
    leaps_jax.errors.UserError: 1 tensors with negative variances: norm/var
    """
    faults: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            faults.setdefault("that are not floating-point", []).append(name)
        elif not np.isfinite(tensor).all():
            faults.setdefault("that are not finite", []).append(name)
        elif name.endswith("/var") and tensor.min(initial=0) < 0:
            faults.setdefault("with negative variances", []).append(name)
    if faults:
        told = [listed(f"tensors {what}", names, 3) for what, names in faults.items()]
        raise UserError("; ".join(told))


def digest(tree: Any) -> str:
    """SHA-256 of the bytes of all arrays of a tree, in their order."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sha.update(np.ascontiguousarray(leaf).view(np.uint8).reshape(-1).data)
    return sha.hexdigest()


def flat_tensors(tree: Any) -> dict[str, Any]:
    """The leaves of nested mappings, by their paths joined by "/"."""
    return flax.traverse_util.flatten_dict(_plain(tree), sep="/")


def _plain(tree: Any) -> Any:
    """Nested dicts, whatever mapping Flax gave."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    return tree


def _write_moments(path: Path, moments: Moments) -> None:
    arrays = {}
    for tap, (mean, variance) in moments.items():
        arrays[f"{tap}:mean"] = np.asarray(mean, np.float32)
        arrays[f"{tap}:var"] = np.asarray(variance, np.float32)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _read_moments(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file) as held:
            taps = [key.removesuffix(":mean") for key in held if key.endswith(":mean")]
            return {tap: (held[f"{tap}:mean"], held[f"{tap}:var"]) for tap in taps}
    except Exception as error:  # a damaged zip raises many kinds
        raise UserError(
            f"{path}: is damaged ({error}); make the checkpoint again"
        ) from None


@contextlib.contextmanager
def writing(folder: Path, tree: Any) -> Iterator[None]:
    """Turns the errors of Orbax into OSErrors, where it writes a tree to a folder.

    Where the disk has too little room it does not begin: it would print traces.
    """
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))
    if shutil.disk_usage(folder).free < size + _BESIDE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise OSError(errno.EIO, _reason(error), str(folder)) from error


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def checkpointer() -> Any:
    """Saves and restores a tree of arrays; a context manager.

    Each of several processes reads and writes by itself and waits for none.
    """
    import orbax.checkpoint

    index = jax.process_index()
    alone = orbax.checkpoint.options.MultiprocessingOptions(
        primary_host=index,
        active_processes={index},
        barrier_sync_key_prefix=f"process{index}",
    )
    return orbax.checkpoint.StandardCheckpointer(multiprocessing_options=alone)
