"""Checkpoints come back whole, or say what is wrong with them."""

import dataclasses
import json
import os
import subprocess
import sys

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import pytest
from damage import one_line

from leaps_jax import Model
from leaps_jax.errors import UserError
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import checkpoints, references
from leaps_jax.zoo import load as loading


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
