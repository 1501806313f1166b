"""Files of torch, read without torch."""

import collections
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import published
import pytest
from damage import one_line

from leaps_jax.errors import UserError
from leaps_jax.zoo import load as loading
from leaps_jax.zoo.conversion import sources, torch_files
from leaps_jax.zoo.conversion.families import resnet


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_as_torch_reads_them(tmp_path, monkeypatch, zipped):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0)
    state = collections.OrderedDict(
        plain=base.reshape(2, 3, 4),
        turned=base.reshape(4, 6).t(),
        part=base[5:21:3],
        once_more=base,
        parameter=torch.nn.Parameter(torch.ones(2, 2)),
        scalar=torch.tensor(3),
        empty=torch.zeros(0, 5),
        single=torch.zeros(3, 1).t(),
        long=torch.tensor([[1, -2]]),
        double=torch.tensor([0.1], dtype=torch.float64),
        half=torch.tensor([0.1, 2]).half(),
        brain=torch.tensor([0.1, -2.5, 3e38]).bfloat16(),
        **{f"i{n}": torch.tensor([1, 2]).to(getattr(torch, n)) for n in ("int32",)},
        **{n: torch.tensor([1, 0]).to(getattr(torch, n)) for n in ("uint8", "bool")},
    )
    state._metadata = {"": {"version": 1}}  # as module.state_dict() has
    beside = {
        "epoch": 7,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "milestones": collections.Counter([3, 3]),
        "best": np.float64(0.5),
        "optimizer_state": {"state": {0: {"m": torch.ones(3)}}},
    }
    path = tmp_path / "x.pth"
    torch.save(
        {"model_state": state, **beside},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    monkeypatch.setitem(sys.modules, "torch", None)
    read = sources.read(path)
    assert list(read) == list(state)
    for key, tensor in state.items():
        value = tensor.detach()
        wanted = (value.float() if value.is_floating_point() else value).numpy()
        assert read[key].dtype == wanted.dtype, key
        np.testing.assert_array_equal(read[key], wanted)


def test_a_file_of_a_big_endian_machine(tmp_path):
    path, values = tmp_path / "x.pth", np.arange(6, dtype=">f4")
    tensor = published.tensor("0", "FloatStorage", 6, (2, 3), (3, 1))
    pickled = published.pickled({"a": tensor})
    published.write(path, pickled, {"0": values.tobytes()}, "big")
    np.testing.assert_array_equal(sources.read(path)["a"], values.reshape(2, 3))


def test_optimizer_states_are_not_read(tmp_path):
    path = tmp_path / "x.pth"
    tensor = published.tensor("0", "FloatStorage", 2, (2,), (1,))
    absent = published.tensor("1", "FloatStorage", 2, (2,), (1,))
    whole = b"\x80\x02}(" + published.text("model")
    whole += b"}(" + published.text("a") + tensor + b"u"
    whole += published.text("optimizer") + b"}(" + published.text("m") + absent + b"uu."
    published.write(path, whole, {"0": bytes(8)})
    assert list(sources.read(path)) == ["a"]


FLOATS = "FloatStorage"
LYING = {
    "more elements than bytes": published.tensor("0", FLOATS, 10**12, (2,), (1,)),
    "a shape beyond the storage": published.tensor("0", FLOATS, 4, (2, 4), (4, 1)),
    "one element a million times": published.tensor("0", FLOATS, 4, (10**12,), (0,)),
    "behind the storage": published.tensor("0", FLOATS, 4, (2,), (1,), offset=3),
    "before the storage": published.tensor("0", FLOATS, 4, (2,), (1,), offset=-1),
    "backwards": published.tensor("0", FLOATS, 4, (2,), (-1,), offset=3),
    "too few strides": published.tensor("0", FLOATS, 4, (2, 2), (1,)),
    "too many axes": published.tensor("0", FLOATS, 4, (1,) * 99, (1,) * 99),
    "empty but too large": published.tensor("0", FLOATS, 4, (0, 10**30), (1, 1)),
    "wide strides": published.tensor("0", FLOATS, 4, (1,), (10**30,)),
    "no such storage": published.tensor("1", FLOATS, 4, (4,), (1,)),
    "a storage outside": published.tensor("../data.pkl", FLOATS, 4, (4,), (1,)),
    "of no known kind": published.tensor("0", "os.system", 4, (4,), (1,)),
    "of two kinds": published.tensor("0", FLOATS, 4, (4,), (1,))
    + b"0"
    + published.tensor("0", "LongStorage", 2, (2,), (1,)),
}


@pytest.mark.parametrize("lie", LYING)
def test_a_torch_file_that_lies_about_sizes(tmp_path, lie):
    path = tmp_path / "x.pth"
    published.write(path, published.pickled({"a": LYING[lie]}), {"0": bytes(16)})
    tracemalloc.start()
    with pytest.raises(UserError, match="cut short|refused") as error:
        sources.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    one_line(error)


def test_a_small_torch_file_cannot_fill_the_memory(tmp_path):
    path, content = tmp_path / "x.pth", {"0": bytes(4 * 10**5)}
    one = published.tensor("0", FLOATS, 10**5, (10**5,), (1,))
    published.write(path, published.pickled({"a": one, "b": one}), content)
    assert len(sources.read(path)) == 2, "layers may share their weights"
    published.write(path, published.pickled({str(i): one for i in range(20)}), content)
    with pytest.raises(UserError, match="larger than the file"):
        sources.read(path)
    published.write(
        path, published.pickled({"a": one}), content, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(UserError, match="is compressed"):
        sources.read(path)


def test_a_damaged_byte_is_found(tmp_path):
    path = tmp_path / "x.pth"
    published.save(path, {"a": np.ones(100, np.float32)})
    content = bytearray(path.read_bytes())
    content[content.index(np.ones(100, np.float32).tobytes()) + 99] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="storage 0 cannot be read"):
        sources.read(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["builtins eval", "torch.jit load", "torch save"])
def test_torch_files_call_nothing_else(tmp_path, name, zipped):
    path = tmp_path / "x.pth"
    evil = f"c{name.replace(' ', chr(10))}\n(".encode() + published.text("1") + b"tR"
    pickled = published.pickled({"a": evil})
    if zipped:
        published.write(path, pickled, {})
    else:
        head = pickle.dumps(torch_files._MAGIC, 2) + pickle.dumps(1001, 2)
        path.write_bytes(head + pickle.dumps({}, 2) + pickled + pickle.dumps([], 2))
    with pytest.raises(UserError, match=f"refused.*{name.replace(' ', '.')}"):
        sources.read(path)


def test_an_array_without_content_takes_no_memory(tmp_path):
    path = tmp_path / "x.pkl"
    for call in (b"cnumpy\nndarray\n((I%d\nttR.", b""):
        head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        call = call or head + b"(I%d\ntX\x01\x00\x00\x00btR."
        path.write_bytes(b"\x80\x02" + call % 10**13)
        with pytest.raises(UserError, match="cut short|refused"):
            sources.read(path)


@pytest.mark.parametrize("opcode", [pickle.FRAME, pickle.BINBYTES8, pickle.BYTEARRAY8])
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_a_length_that_no_file_has(tmp_path, suffix, opcode):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"\x80\x05" + opcode + (2**62).to_bytes(8, "little") + bytes(9))
    with pytest.raises(UserError, match="download it again"):
        sources.read(path)


def test_a_pickle_that_holds_itself(tmp_path):
    path, content = tmp_path / "x.pkl", {}
    content["state_dict"] = content
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="no tensors"):
        sources.read(path)


def test_nothing_heavy_is_imported_early():
    code = (
        "import sys; from leaps_jax.zoo import build, load;"
        "print([m for m in ('torch', 'orbax', 'tensorflow') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "..",
        "",
        None,
        3,
        "/",
        "../x.bin",
        "sub/x.bin",
        "a\0.bin",
        "x" * 300 + ".bin",
    ]
    + ["model.safetensors.index.json", "gone.safetensors", "folder.safetensors"],
)
def test_an_index_of_shards_that_lies(tmp_path, name):
    (tmp_path / "folder.safetensors").mkdir()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="weight_map.a|no such file|is a folder") as e:
        sources.read(tmp_path)
    assert "download it again" in one_line(e) or "no such file" in one_line(e)


@pytest.mark.parametrize(
    "content", ["[1]", "null", '{"weight_map": [1]}', "{", "[" * 9**6]
)
def test_an_index_of_shards_that_is_none(tmp_path, content):
    (tmp_path / "pytorch_model.bin.index.json").write_text(content)
    with pytest.raises(UserError, match="index.json: .*; download it again") as error:
        sources.read(tmp_path)
    one_line(error)


def test_links_and_pipes_that_lead_nowhere(tmp_path):
    path = tmp_path / "model.safetensors"
    path.symlink_to(".")  # a folder that holds itself
    with pytest.raises(UserError, match="is a folder, where a file belongs"):
        sources.read(tmp_path)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(UserError, match="has neither model.safetensors"):
        sources.read(tmp_path)
    os.mkfifo(tmp_path / "x.pth")
    with pytest.raises(UserError, match="is no regular file"):
        sources.read(tmp_path / "x.pth")
    with pytest.raises(UserError, match="cannot be read .File name too long"):
        sources.read(tmp_path / ("x" * 300))


@pytest.mark.parametrize("kind", ["meta", "sparse", "complex"])
def test_tensors_of_kinds_that_are_not_read(tmp_path, kind):
    torch = pytest.importorskip("torch")
    tensor = {
        "meta": lambda: torch.zeros(3, device="meta"),
        "sparse": lambda: torch.eye(3).to_sparse(),
        "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    }[kind]()
    torch.save({"a": tensor}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="refused, .*save them dense, as float32") as e:
        sources.read(tmp_path / "x.pth")
    one_line(e)


@pytest.mark.parametrize("shape", [(0, 2048), (), (2**21, 0)])
def test_classifiers_of_no_classes_or_too_many(shape):
    head = {"head.projection.weight": np.zeros(shape, np.float32)}
    with pytest.raises(UserError, match="one of no classes, or of too many") as error:
        loading._converted("slow_r50", head, resnet.SLOWFAST)
    one_line(error)
