"""Weight files that are wrong in every way, and checkpoints."""

import collections
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import published
import pytest

from leaps_jax import Model, taps
from leaps_jax.errors import UserError
from leaps_jax.models import timesformer
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import checkpoints, references
from leaps_jax.zoo import load as loading
from leaps_jax.zoo.conversion import namings, rules, sources, torch_files
from leaps_jax.zoo.conversion.families import resnet


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def model():
    return loading.initialize("x3d_xs_small", ("left", "right"), frames=4, size=32)


# ---- files


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


# ---- files of torch, without torch


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


# ---- keys and shapes

TOY = rules.Naming(
    "toy",
    rules=((r"^fc\.", "classifier."), (r"^bn\.", "norm."), (r"^cls$", "token")),
    ignored=((r"num_batches_tracked", "counts steps"),),
)
TOY_TARGET = {
    "params": {
        "classifier": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)},
        "norm": {"scale": np.zeros(3), "bias": np.zeros(3)},
        "token": np.zeros((1, 1, 3)),
    },
    "batch_stats": {"norm": {"mean": np.zeros(3), "var": np.zeros(3)}},
}
TOY_SOURCE = {
    "fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fc.bias": np.ones(2),
    "bn.weight": np.full(3, 2.0),
    "bn.bias": np.full(3, 3.0),
    "bn.running_mean": np.full(3, 4.0),
    "bn.running_var": np.full(3, 5.0),
    "bn.num_batches_tracked": np.array(6),
    "cls": np.full((1, 1, 3), 7.0),
}


def test_every_leaf_goes_to_its_place():
    variables = rules.convert_tensors(TOY_SOURCE, TOY, TOY_TARGET)
    kernel = variables["params"]["classifier"]["kernel"]
    np.testing.assert_array_equal(kernel, TOY_SOURCE["fc.weight"].T)
    assert variables["params"]["norm"]["scale"][0] == 2
    assert variables["batch_stats"]["norm"]["mean"][0] == 4
    assert variables["batch_stats"]["norm"]["var"][0] == 5
    assert variables["params"]["token"].shape == (1, 1, 3)
    shapes = jax.tree.map(np.shape, variables)
    assert shapes == jax.tree.map(np.shape, TOY_TARGET)


def test_placing_copies_nothing():
    placed = rules.place(TOY_SOURCE, TOY, TOY_TARGET)
    kernel = placed["params", "classifier", "kernel"]
    assert np.shares_memory(kernel, TOY_SOURCE["fc.weight"])
    scale = placed["params", "norm", "scale"]
    assert scale.dtype == np.float64 and np.shares_memory(
        scale, TOY_SOURCE["bn.weight"]
    )


def test_one_line_lists_every_mismatch():
    source = dict(TOY_SOURCE, extra=np.zeros(1))
    del source["cls"]
    source["fc.bias"] = np.zeros(5)
    source["classifier.weight"] = source["fc.weight"]
    with pytest.raises(UserError) as error:
        rules.convert_tensors(source, TOY, TOY_TARGET)
    text = one_line(error)
    assert "1 tensors missing: params/token" in text
    assert "1 tensors unknown: extra" in text
    assert "fc.bias (5,) for classifier/bias (2,)" in text
    assert "classifier.weight and fc.weight" in text


@pytest.mark.parametrize(
    ("key", "tensor", "words"),
    [
        ("fc.bias", np.array([1, np.nan]), "not finite: params/classifier/bias"),
        ("fc.bias", np.array([1, -np.inf]), "not finite"),
        ("fc.bias", np.array([True, False]), "not floating-point"),
        ("fc.bias", np.array([1, 2]), "not floating-point"),
        ("bn.running_var", np.full(3, -1.0), "negative variances"),
    ],
)
def test_tensors_that_no_training_made(key, tensor, words):
    with pytest.raises(UserError, match=f"{words}.*give trained weights") as error:
        rules.convert_tensors(TOY_SOURCE | {key: tensor}, TOY, TOY_TARGET)
    one_line(error)


def test_long_lists_are_cut():
    source = dict(TOY_SOURCE, **{f"extra{i}": np.zeros(1) for i in range(25)})
    with pytest.raises(UserError, match="25 tensors unknown: .* and 15 more"):
        rules.convert_tensors(source, TOY, TOY_TARGET)


def test_layouts():
    rng = np.random.default_rng(0)
    for shape, ndim, wanted in [
        ((4, 3, 1, 2, 5), 5, (1, 2, 5, 3, 4)),
        ((4, 3, 2, 5), 4, (2, 5, 3, 4)),
        ((4, 3), 2, (3, 4)),
        ((4, 3, 1, 1, 1), 2, (3, 4)),
        ((4, 3), 5, (1, 1, 1, 3, 4)),
        ((4, 3, 2, 1, 1), 2, (4, 3, 2)),  # no matrix: left for the shape check
    ]:
        tensor = rng.normal(size=shape)
        assert rules.to_layout(tensor, "kernel", ndim).shape == wanted
    tensor = rng.normal(size=(4, 3))
    assert rules.to_layout(tensor, "embedding", 2) is tensor


def test_weights_of_another_model_are_named():
    cases = {
        "head.lin_5.weight s1.pathway0_stem.conv_xy.weight": "x3d_xs or x3d_s",
        "features.0.0.attn.relative_position_bias_table features.6.1.norm2.weight"
        " head.weight": "swin3d_t or swin3d_s or swin3d_b",
        "vivit.embeddings.cls_token classifier.weight": "vivit_b_16x2",
        "s1.pathway1_stem.conv.weight": "a two-pathway SlowFast",
        "something.weight": "found something.weight",
    }
    for keys, words in cases.items():
        with pytest.raises(UserError, match=f"not weights of slow_r50.*{words}") as e:
            namings.recognise("slow_r50", keys.split())
        one_line(e)
    with pytest.raises(UserError, match="no published source"):
        namings.recognise("x3d_xs_small", ["head.lin_5.weight"])


def test_number_of_classes_comes_from_the_file():
    head = {"head.projection.weight": np.zeros((7, 2048), np.float32)}
    shape = rules.head_shape(head, resnet.SLOWFAST, "classifier")
    assert shape == (7, 2048)
    with pytest.raises(UserError) as error:
        loading._converted("slow_r50", head, resnet.SLOWFAST)
    text = one_line(error)
    assert "tensors missing" in text and "another shape" not in text


# ---- checkpoints


def test_round_trip(tmp_path, model):
    module = model.module.clone(shortcut_norm_on_stride=False)
    shapes = zoo.variable_shapes(module)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), shapes
    )
    moments = {"stem/norm": (np.zeros(24, np.float32), np.ones(24, np.float32))}
    saved = Model(module, variables, model.spec, moments=moments)
    folder = loading.save(saved, tmp_path / "deep" / "model", extra={"accuracy": 0.5})
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]
    again = loading.load_model(f"x3d_xs_small@{folder}")
    assert again.module == module
    assert again.spec == model.spec
    np.testing.assert_array_equal(again.moments["stem/norm"][1], np.ones(24))
    for one, other in zip(
        jax.tree.leaves(variables), jax.tree.leaves(again.variables), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    video = rng.normal(size=(1, 4, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        jax.jit(module.apply)(variables, video),
        jax.jit(again.module.apply)(again.variables, video),
    )
    assert checkpoints.load(folder).extra == {"accuracy": 0.5}
    half = loading.load_model(f"x3d_xs_small@{folder}", dtype="bfloat16", remat=True)
    assert half.module.dtype == jax.numpy.bfloat16 and half.module.remat
    with pytest.raises(UserError, match="must be float32 or bfloat16"):
        loading.load_model(f"x3d_xs_small@{folder}", dtype="int8")


def test_a_folder_is_not_overwritten_by_accident(tmp_path, model):
    folder = loading.save(model, tmp_path / "m")
    with pytest.raises(UserError, match="exists"):
        loading.save(model, folder)
    loading.save(model, folder, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.png").write_text("precious")
    with pytest.raises(UserError, match="no model's folder"):
        loading.save(model, other, overwrite=True)
    assert (other / "cat.png").exists()


def test_every_flipped_bit_of_the_weights_is_seen(tmp_path, model):
    folder = loading.save(model, tmp_path / "m")
    before = checkpoints.digest(model.variables)
    files = [p for p in (folder / "variables").rglob("d/*") if p.stat().st_size]
    path = max(files, key=lambda p: p.stat().st_size)  # the others hold indices
    rng, refused = np.random.default_rng(0), 0
    for _ in range(12):
        whole = path.read_bytes()
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            found = checkpoints.load(folder).variables
            assert checkpoints.digest(found) == before  # what nothing reads
        except UserError as error:
            assert "make the checkpoint again" in str(error)
            refused += 1
        path.write_bytes(whole)
    assert refused >= 6


@pytest.mark.parametrize(
    ("leaf", "value", "words"),
    [
        ("params/classifier/bias", np.nan, "not finite: params/classifier/bias"),
        ("params/classifier/kernel", np.inf, "not finite"),
        ("batch_stats/stem/norm/var", -1.0, "negative variances"),
    ],
)
def test_values_that_no_weights_have(tmp_path, model, leaf, value, words):
    tensors = {
        k: np.array(v) for k, v in checkpoints.flat_tensors(model.variables).items()
    }
    tensors[leaf].flat[0] = value
    variables = flax.traverse_util.unflatten_dict(tensors, sep="/")
    with pytest.raises(UserError, match=words):
        loading.save(dataclasses.replace(model, variables=variables), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_checkpoint_that_cannot_be_replaced_stays(tmp_path, model, monkeypatch):
    folder = loading.save(model, tmp_path / "m", extra={"number": 1})
    (folder / "notes.txt").write_text("mine")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(checkpoints, "_write_moments", full)
        moments = {"a": (np.zeros(1), np.ones(1))}
        other = dataclasses.replace(model, moments=moments)
        loading.save(other, folder, extra={"number": 2}, overwrite=True)
    assert checkpoints.load(folder).extra == {"number": 1}
    loading.save(model, folder, extra={"number": 3}, overwrite=True)
    assert checkpoints.load(folder).extra == {"number": 3}
    names = {"model.json", "variables", "notes.txt"}
    assert {path.name for path in folder.iterdir()} == names


def test_wrong_checkpoints(tmp_path, model):
    folder = loading.save(model, tmp_path / "m")
    with pytest.raises(UserError, match="weights of x3d_xs_small, not of x3d_xs") as e:
        loading.load_model(f"x3d_xs@{folder}")
    one_line(e)

    facts = json.loads((folder / "model.json").read_text())
    changed = facts | {
        "architecture": facts["architecture"] | {"overrides": {"outer": 9}}
    }
    (folder / "model.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="of another shape.*head/expand/kernel") as e:
        loading.load_model(f"x3d_xs_small@{folder}")
    one_line(e)

    shapes = dict(facts["shapes"])
    shapes["params/new/kernel"] = [1]
    del shapes["params/classifier/bias"]
    (folder / "model.json").write_text(json.dumps(facts | {"shapes": shapes}))
    with pytest.raises(UserError, match="missing: params/new/kernel.*unknown") as e:
        loading.load_model(f"x3d_xs_small@{folder}")
    one_line(e)

    (folder / "model.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        checkpoints.load(folder)
    (folder / "model.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(UserError, match="update leaps_jax"):
        checkpoints.load(folder)
    (folder / "model.json").write_text(json.dumps(facts))
    (folder / "variables" / "_METADATA").unlink()
    (folder / "variables" / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match="cannot be read") as e:
        checkpoints.load(folder)
    one_line(e)


STRANGE = {
    "size": (("spec", "size"), 10**9, "spec.size=1000000000: must be less than"),
    "pixels": (("spec",), {"frames": 65536, "size": 4096}, "a clip may have"),
    "depth": (("architecture", "overrides"), {"depths": [10**5] * 4}, "more blocks"),
    "kind": (("architecture", "overrides"), {"depths": "ab"}, "cannot be built"),
    "twice": (("architecture", "overrides"), {"frames": 4}, "cannot be built"),
    "field": (("architecture", "overrides"), {"dept": 4}, "did you mean depths"),
    "digest": (("digests",), {"params/none": "0" * 64}, "are damaged: params/none"),
    "overrides": (("architecture", "overrides"), [], "architecture.overrides=[]"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_checkpoint_that_says_strange_things(tmp_path, model, case):
    (*path, last), value, words = STRANGE[case]
    folder = loading.save(model, tmp_path / "m")
    facts = json.loads((folder / "model.json").read_text())
    inner = facts
    for part in path:
        inner = inner[part]
    inner[last] = inner[last] | value if isinstance(value, dict) else value
    (folder / "model.json").write_text(json.dumps(facts))
    with pytest.raises(UserError) as error:
        loading.load_model(f"x3d_xs_small@{folder}")
    assert words in one_line(error)
    assert one_line(error).endswith("make the checkpoint again")


def test_a_newer_format_may_be_of_another_form(tmp_path, model):
    folder = loading.save(model, tmp_path / "m")
    (folder / "model.json").write_text(json.dumps({"format": 2, "spec": "elsewhere"}))
    with pytest.raises(UserError, match="is of format 2, .*update leaps_jax"):
        checkpoints.load(folder)


def test_references(tmp_path, monkeypatch, model):
    with pytest.raises(UserError, match="no weights given.*x3d_xs@PATH"):
        loading.load_model("x3d_xs")
    with pytest.raises(UserError, match="nothing after @"):
        loading.load_model("x3d_xs@")
    with pytest.raises(UserError, match="did you mean x3d_xs"):
        loading.load_model("x3dxs@weights")
    with pytest.raises(UserError, match="no such file or folder"):
        loading.load_model("x3d_xs@nowhere.pth")
    monkeypatch.setattr(references, "SHIPPED", (tmp_path,))
    loading.save(model, tmp_path / "x3d_xs_small@actions")
    assert loading.load_model("x3d_xs_small@actions").spec.classes == ("left", "right")
    with pytest.raises(UserError, match="did you mean actions"):
        loading.load_model("x3d_xs_small@action")


def test_a_folder_does_not_hide_shipped_weights(tmp_path, monkeypatch, model):
    monkeypatch.setattr(references, "SHIPPED", (tmp_path / "shipped",))
    loading.save(model, tmp_path / "shipped" / "x3d_xs_small@actions")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "actions" / "clips").mkdir(parents=True)  # `leaps-jax actions` makes it
    assert loading.load_model("x3d_xs_small@actions").spec == model.spec
    shipped = references.fingerprint("x3d_xs_small@actions")
    for path in ("actions/", "./actions", str(tmp_path / "actions")):
        with pytest.raises(UserError, match="neither model.safetensors"):
            loading.load_model(f"x3d_xs_small@{path}")
    (tmp_path / "actions" / "clips").rmdir()
    (tmp_path / "actions").rmdir()
    own = dataclasses.replace(
        model, spec=dataclasses.replace(model.spec, classes=("up", "down"))
    )
    loading.save(own, tmp_path / "actions")
    assert loading.load_model("x3d_xs_small@actions").spec == own.spec
    assert references.fingerprint("x3d_xs_small@actions") != shipped


def test_a_plain_name_is_also_a_file_or_a_folder_of_published_weights(
    tmp_path, monkeypatch, model
):
    monkeypatch.setattr(references, "SHIPPED", (tmp_path / "shipped",))
    loading.save(model, tmp_path / "shipped" / "x3d_xs_small@actions")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "actions").write_bytes(b"x")
    with pytest.raises(UserError, match="no checkpoint of Flax"):
        loading.load_model("x3d_xs_small@actions")
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "model.safetensors").touch()
    with pytest.raises(UserError, match="model.safetensors: is empty"):
        loading.load_model("x3d_xs_small@published")


def test_a_checkpoint_loads_on_another_number_of_devices(tmp_path, model):
    folder = loading.save(model, tmp_path / "m")
    code = (
        "import sys, jax; from leaps_jax import load_model;"
        f"m = load_model('x3d_xs_small@{folder}');"
        "print(jax.device_count(), len(jax.tree.leaves(m.variables)))"
    )
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | flags,
    )
    assert ran.stdout.split() == ["3", str(len(jax.tree.leaves(model.variables)))]


# ---- fine-tuning


def test_other_classes_get_a_new_classifier_and_nothing_else(model):
    tuned = loading.for_classes(model, tuple("abc"))
    assert tuned.spec.classes == ("a", "b", "c")
    old, new = (dict(m.variables["params"]) for m in (model, tuned))
    assert new.pop("classifier")["kernel"].shape[-1] == 3
    old.pop("classifier")
    jax.tree.map(np.testing.assert_array_equal, old, new)
    jax.tree.map(
        np.testing.assert_array_equal,
        model.variables["batch_stats"],
        tuned.variables["batch_stats"],
    )
    video = np.random.default_rng(0).random((1, 4, 32, 32, 3), np.float32)
    assert taps.predict(tuned, video).shape == (1, 3)
    assert tuned.spec == dataclasses.replace(model.spec, classes=("a", "b", "c"))


def test_the_same_classes_keep_the_classifier(model):
    assert loading.for_classes(model, model.spec.classes) is model
    longer = loading.for_classes(model, model.spec.classes, size=64, stride=5)
    assert (longer.spec.size, longer.spec.stride, longer.module.size) == (64, 5, 64)
    jax.tree.map(np.testing.assert_array_equal, model.variables, longer.variables)
    swapped = loading.for_classes(model, model.spec.classes[::-1], seed=1)
    kernels = [m.variables["params"]["classifier"]["kernel"] for m in (model, swapped)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0, "labels index another order"


@pytest.mark.parametrize("clip", [{"frames": 8}, {"size": 64}])
def test_embeddings_are_made_for_a_clip(monkeypatch, clip):
    monkeypatch.setitem(timesformer.VARIANTS["timesformer_small"], "depth", 1)
    model = loading.initialize("timesformer_small", ("a", "b"), frames=4, size=32)
    assert loading.for_classes(model, ("c",), stride=3).spec.stride == 3
    with pytest.raises(UserError, match="made for 4 frames of 32 pixels") as error:
        loading.for_classes(model, ("a", "b"), **clip)
    ((name, value),) = clip.items()
    assert f"{name}={value}" in one_line(error)
