"""Reads published weight files into NumPy arrays, without running their code."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import flax.serialization
import flax.traverse_util
import numpy as np

from leaps_jax import schemas
from leaps_jax.errors import UserError
from leaps_jax.zoo.conversion import pickles, torch_files

# Where training codes put the tensors: pytorchvideo, SlowFast and TimeSformer
# (model_state), mmaction2 (state_dict), others (model, module); Caffe2 (blobs).
WRAPPERS = ("model_state", "state_dict", "model", "module", "blobs")

INSTALL = "pip install 'leaps_jax[convert]'"


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The floating-point and integer tensors of a weight file, by published key.

    Args:
      path: a .pth, .pyth, .pt or .bin file of torch, a .safetensors file, a .pkl file
        of Caffe2, a checkpoint of Flax (.msgpack, or no suffix), or a Hugging Face
        folder with model.safetensors or pytorch_model.bin, in one file or sharded.

    Returns:
      Arrays in the layouts of the file; bfloat16 and float16 become float32. Keys of a
      tree are joined by "/".

    Raises:
      UserError: the file is missing, empty, cut short, of another kind, or a pickle
        that would run code (it is not run).

    >>> read("SLOW_8x8_R50.pyth")["blocks.0.conv.weight"].shape     # doctest: +SKIP
    (64, 3, 1, 7, 7)
    """
    path = Path(path)
    try:
        return _read_folder(path) if path.is_dir() else _read_file(path)
    except OSError as error:  # of the file, or of a folder above it
        reason = error.strerror or error
        raise UserError(
            f"{path}: cannot be read ({reason}); check name and permissions"
        ) from None


def _read_file(path: Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        raise UserError(f"{path}: is a folder, where a file belongs; download it again")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():  # the writer of a pipe would be waited for
        raise UserError(f"{path}: is no regular file; give a file of weights")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty; download it again")
    if path.suffix not in _READERS:
        kinds = ", ".join(filter(None, _READERS))
        raise UserError(
            f"{path}: must be one of {kinds}, a checkpoint of Flax without a suffix, or"
            " a Hugging Face folder"
        )
    content = _READERS[path.suffix](path)
    tensors = {
        key: array
        for key, value in _unwrap(content).items()
        if (array := _array(value)) is not None
    }
    if not tensors:
        raise UserError(f"{path}: holds no tensors; give a file of weights")
    return tensors


#: The file of a Hugging Face folder; in place of it there may be an index of shards.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


def _read_folder(folder: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for file in files_of(folder):
        tensors |= _read_file(file)
    return tensors


def files_of(folder: Path) -> list[Path]:
    """The files of tensors in a Hugging Face folder.

    Raises:
      UserError: it has none, or its index is damaged.
    """
    for name in FOLDER_FILES:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            found = schemas.read(index, schemas.ShardIndex, "download it again")
            return [folder / shard for shard in sorted(set(found.weight_map.values()))]
    raise UserError(
        f"{folder}: has neither model.safetensors nor pytorch_model.bin (nor model.json"
        " of a leaps_jax checkpoint)"
    )


def _read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            archive = torch_files.Archive(file)
            return {
                key: archive.array(value)
                for key, value in _unwrap(archive.content).items()
                if isinstance(value, torch_files.Tensor)
            }
    except pickles.Refused as error:
        _refuse(path, str(error))
    except torch_files.Damaged as error:
        raise UserError(
            f"{path}: is cut short or no torch file ({_brief(error)}); download it"
            " again"
        ) from None


def _read_safetensors(path: Path) -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise UserError(f"{path}: reading it needs safetensors; {INSTALL}") from None
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (TypeError, ValueError, KeyError, AttributeError):
        # NumPy has no bfloat16 or float8
        return _read_safetensors_raw(path)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: is cut short or no safetensors file ({reason}); download it again"
        ) from None


def _read_safetensors_raw(path: Path) -> dict[str, np.ndarray]:
    import ml_dtypes
    import safetensors

    kinds = {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "I64": np.int64,
        "I32": np.int32,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }
    tensors = {}
    for key, item in safetensors.deserialize(path.read_bytes()):
        if item["dtype"] not in kinds:
            raise UserError(f"{path}: {key} is {item['dtype']}; convert it to float32")
        flat = np.frombuffer(item["data"], kinds[item["dtype"]])
        tensors[key] = flat.reshape(item["shape"])
    return tensors


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return pickles.HarmlessUnpickler(file, encoding="latin1").load()
        except pickles.Refused as error:
            _refuse(path, str(error))
        except MemoryError:
            raise
        except Exception:  # a damaged pickle raises almost anything
            raise UserError(
                f"{path}: is cut short or no pickle; download it again"
            ) from None


def _read_flax(path: Path) -> Any:
    try:  # MessagePack of numbers, text and arrays: nothing in it is run
        tree = flax.serialization.msgpack_restore(path.read_bytes())
        return flax.traverse_util.flatten_dict(tree, sep="/")
    except MemoryError:
        raise
    except Exception:  # MessagePack raises its own, and ValueError, TypeError, ...
        raise UserError(
            f"{path}: is cut short or no checkpoint of Flax; download it again"
        ) from None


def _refuse(path: Path, what: str) -> NoReturn:
    what = _brief(what)
    if re.match(r"torch\._utils\._rebuild_|torch\.\w+Storage", what):
        raise UserError(
            f"{path}: refused, it holds tensors of a kind that is not read ({what}):"
            " sparse, quantized, complex or without values; save them dense, as float32"
        )
    raise UserError(
        f"{path}: refused, its pickle asks for {what}, which could run code; give a"
        " file that holds tensors alone"
    )


def _brief(words: object) -> str:
    """One line, whatever names a file chose."""
    return " ".join(str(words).split())[:200]


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pth": _read_torch,
    ".pyth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".safetensors": _read_safetensors,
    ".pkl": _read_pickle,
    ".msgpack": _read_flax,
    "": _read_flax,  # Scenic's files are called checkpoint
}


def _unwrap(content: Any, depth: int = 4) -> Mapping[str, Any]:
    for wrapper in WRAPPERS if depth else ():  # a pickle can hold itself
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            return _unwrap(content[wrapper], depth - 1)
    if not isinstance(content, Mapping):
        return {}
    return {key: value for key, value in content.items() if isinstance(key, str)}


def _array(value: Any) -> np.ndarray | None:
    if not isinstance(value, np.ndarray) or value.dtype.kind == "O":
        return None
    if value.dtype.kind not in "iub":  # ml_dtypes' bfloat16 is of kind V
        value = value.astype(np.float32)
    return value
