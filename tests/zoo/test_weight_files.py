"""Weight files that are wrong in every way."""

import pickle
import sys

import flax.serialization
import flax.traverse_util
import numpy as np
import pytest
from damage import RunsCode, one_line

from leaps_jax.errors import UserError
from leaps_jax.zoo.conversion import sources


@pytest.mark.parametrize("suffix", sources._READERS)
def test_missing_empty_and_damaged_files(tmp_path, suffix):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"file{suffix}"
    with pytest.raises(UserError, match="no such file"):
        sources.read(path)
    path.touch()
    with pytest.raises(UserError, match="is empty"):
        sources.read(path)
    for garbage in (b"<html>not found</html>", bytes(range(256)) * 9):
        path.write_bytes(garbage)
        with pytest.raises(UserError, match="download it again|refused") as error:
            sources.read(path)
        assert str(path) in one_line(error)


@pytest.mark.parametrize("fraction", [0.3, 0.9])
def test_truncated_files(tmp_path, fraction):
    torch = pytest.importorskip("torch")
    numpy_save = pytest.importorskip("safetensors.numpy").save_file
    arrays = {"a.weight": np.ones((50, 50), np.float32)}
    for name, zipped in (("x.pth", True), ("x.pt", False)):
        torch.save(
            {"a.weight": torch.ones(50, 50)},
            tmp_path / name,
            _use_new_zipfile_serialization=zipped,
        )
    numpy_save(arrays, tmp_path / "x.safetensors")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"blobs": arrays}))
    (tmp_path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(arrays))
    for path in tmp_path.iterdir():
        sources.read(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(fraction * len(content))])
        with pytest.raises(UserError, match="cut short|download it again") as error:
            sources.read(path)
        one_line(error)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code(tmp_path, protocol):
    proof, path = tmp_path / "proof", tmp_path / "evil.pkl"
    content = {"blobs": {"conv1_w": np.zeros(3), "x": RunsCode(proof)}}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError, match=r"posix\.system|nt\.system") as error:
        sources.read(path)
    one_line(error)
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists(), "the control: this pickle does run code"


def test_a_torch_file_that_would_run_code(tmp_path):
    torch = pytest.importorskip("torch")
    proof, path = tmp_path / "proof", tmp_path / "evil.pth"
    torch.save({"model_state": {"a": torch.zeros(2)}, "x": RunsCode(proof)}, path)
    with pytest.raises(UserError, match=r"posix\.system|nt\.system") as error:
        sources.read(path)
    one_line(error)
    assert not proof.exists()
    path.write_bytes(pickle.dumps(RunsCode(proof)))
    with pytest.raises(UserError, match="refused"):
        sources.read(path)
    assert not proof.exists()


def test_files_without_tensors(tmp_path):
    path = tmp_path / "x.pkl"
    for content in ({"blobs": {}}, {"blobs": {"a": "text"}}, [1, 2], 3):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match="no tensors"):
            sources.read(path)
    with pytest.raises(UserError, match="must be one of .pth"):
        (tmp_path / "x.h5").write_text("x")
        sources.read(tmp_path / "x.h5")
    with pytest.raises(UserError, match="neither model.safetensors"):
        sources.read(tmp_path)


def test_the_reader_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"something")
    with pytest.raises(UserError, match=r"pip install 'leaps_jax\[convert\]'"):
        sources.read(path)
