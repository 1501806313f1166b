"""`leaps-jax convert`: what it writes and what it refuses."""

import published
import pytest
from command import assert_refused

from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading


def test_convert_writes_a_checkpoint(call, root):
    from parity import weights

    published.save(root / "X3D_XS.pyth", weights("ptv_x3d_xs"), "model_state")
    words = ["convert", "x3d_xs", "{root}/X3D_XS.pyth", "{root}/converted"]
    ran = call(*words)
    assert ran.code == 0, ran.err
    assert f"--model x3d_xs@{root / 'converted'}" in ran.out
    model = loading.load_model(f"x3d_xs@{root / 'converted'}")
    assert model.spec.classes == zoo.KINETICS_400
    assert "out=" in call(*words).err, "a second time"


def test_convert_finds_the_model(call, root):
    save = pytest.importorskip("safetensors.numpy").save_file
    from parity import weights

    for golden in ("ptv_c2d_r50", "ptv_x3d_xs"):
        save(weights(golden), root / f"{golden}.safetensors")
    ran = call("convert", "{root}/ptv_c2d_r50.safetensors", "{root}/c2d")
    assert ran.code == 0, ran.err
    assert f"--model c2d_r50@{root / 'c2d'}" in ran.out
    spec = loading.load_model(f"c2d_r50@{root / 'c2d'}").spec
    assert spec.source == f"{root / 'ptv_c2d_r50.safetensors'} (pytorchvideo_pooled)"
    ran = call("convert", "{root}/ptv_x3d_xs.safetensors", "{root}/no")
    assert ran.code == 2 and "x3d_xs or x3d_s or x3d_m" in ran.err


REFUSED_CONVERT = {
    "unknown model": (["slow_50", "{root}/evil.pkl"], ["model='slow_50'", "slow_r50"]),
    "no file": (["slow_r50", "{root}/no.pth"], ["source=", "no such file"]),
    "empty file": (["slow_r50", "{root}/empty.mp4"], ["source=", "is empty"]),
    "runs code": (["slow_r50", "{root}/evil.pkl"], ["source=", "refused", "give a"]),
    "no weights": (["slow_r50", "{root}/notes.txt"], ["source=", "must be one of"]),
}


@pytest.mark.parametrize("case", REFUSED_CONVERT)
def test_convert_refuses(call, root, case):
    words, expected = REFUSED_CONVERT[case]
    assert_refused(call, root, ["convert", *words, "{root}/refused"], expected)
    assert not (root / "proof").exists()


def test_convert_refuses_an_out_that_exists(call, root):
    words = ["convert", "slow_r50", "{root}/evil.pkl", "{root}/weights"]
    assert_refused(call, root, words, ["out=", "exists", "--overwrite"])
