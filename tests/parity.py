"""Networks against their upstream implementations, on golden data.

The weights follow a rule (golden/rule.py), upstream ran with them, and its logits and
the moments of all inputs of its norms are stored. Here the weights go under their
published names through the converter into our modules.

`python tests/parity.py [NAME ...]` prints the table of all, or of those whose golden
file or model has one of the names in it.
"""

import dataclasses
import functools
import re
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from golden import rule

from leaps_jax import taps
from leaps_jax.model import norm_inputs
from leaps_jax.zoo import load as loading
from leaps_jax.zoo.conversion import namings, rules

GOLDEN = Path(__file__).parent / "golden"

# golden file -> model of the zoo, expected naming. `NAME@TxS` is network NAME on clips
# of T frames of S pixels where that is not what the model is made for.
NETWORKS = {
    "ptv_slow_r50": ("slow_r50", "pytorchvideo"),
    "slowfast_slow_8x8_r50": ("slow_r50", "slowfast"),
    "ptv_i3d_r50": ("i3d_r50", "pytorchvideo_pooled"),
    "ptv_c2d_r50": ("c2d_r50", "pytorchvideo_pooled"),
    "ptv_r2plus1d_r50": ("r2plus1d_r50", "pytorchvideo"),
    "mmaction2_csn_r50": ("csn_r50", "mmaction2"),
    "ptv_csn_r101": ("csn_r101", "pytorchvideo"),
    "torchvision_r3d_18": ("r3d_18", "torchvision"),
    "torchvision_mc3_18": ("mc3_18", "torchvision"),
    "torchvision_r2plus1d_18": ("r2plus1d_18", "torchvision"),
    "torchvision_r2plus1d_18@10x90": ("r2plus1d_18", "torchvision"),
    "ptv_x3d_xs": ("x3d_xs", "pytorchvideo"),
    "ptv_x3d_s": ("x3d_s", "pytorchvideo"),
    "ptv_x3d_m": ("x3d_m", "pytorchvideo"),
    "ptv_x3d_l": ("x3d_l", "pytorchvideo"),
    "slowfast_x3d_xs": ("x3d_xs", "slowfast"),
    "slowfast_x3d_m": ("x3d_m", "slowfast"),
    "timesformer_official": ("timesformer", "official"),
    "hf_timesformer_base": ("timesformer", "huggingface"),
    "hf_vivit_b_16x2": ("vivit_b_16x2", "huggingface"),
    "scenic_vivit_b_16x2": ("vivit_b_16x2", "scenic"),
    "scenic_vivit_b_16x2_fe": ("vivit_b_16x2_fe", "scenic"),
    "uniformerv2_b_16_8": ("uniformer_v2_b", "official"),
    "uniformerv2_l_14_8": ("uniformer_v2_l", "official"),
    "swin_official_t": ("swin3d_t", "official"),
    "torchvision_swin3d_t": ("swin3d_t", "torchvision"),
    "torchvision_swin3d_t@20x200": ("swin3d_t", "torchvision"),
    "torchvision_swin3d_t@7x90": ("swin3d_t", "torchvision"),
    "torchvision_swin3d_s": ("swin3d_s", "torchvision"),
    "torchvision_swin3d_b": ("swin3d_b", "torchvision"),
    "ptv_mvit_base_16x4": ("mvit_v1_b", "pytorchvideo"),
    "torchvision_mvit_v1_b": ("mvit_v1_b", "torchvision"),
    "torchvision_mvit_v1_b@12x160": ("mvit_v1_b", "torchvision"),
    "slowfast_mvitv2_s": ("mvit_v2_s", "slowfast"),
    "torchvision_mvit_v2_s": ("mvit_v2_s", "torchvision"),
    "torchvision_mvit_v2_s@12x160": ("mvit_v2_s", "torchvision"),
    "slowfast_mvitv2_b": ("mvit_v2_b", "slowfast"),
    "slowfast_rev_mvit_b": ("rev_mvit_b", "slowfast"),
}

# Float32 rounding is at most 8e-6 of logits and 7e-6 of taps (of upstream against
# itself in float64), a tensor that is 1 % off changes logits by 2e-3 and more.
LOGITS_TOLERANCE = 5e-5
TAPS_TOLERANCE = 3e-5
BFLOAT16_TOLERANCE = 0.05
TAPS_TOLERANCE_FLOAT16 = 2e-3  # standard deviations of files that store them so


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far a network is from upstream.

    Attributes:
      logits: the largest difference, in standard deviations of the logits.
      means: the largest difference of a tap's mean over a channel, in the tap's rms.
      stds: likewise of its standard deviation.
      stds_tolerance: of those, by the precision that they are stored in.
      control: `logits` with one tensor in the middle of the source 1 % larger.
      bfloat16: relative l2 distance of logits computed in bfloat16 from float32's.
      seconds: of conversion, compilation and three passes.
    """

    logits: float
    means: float
    stds: float
    stds_tolerance: float
    control: float
    bfloat16: float
    seconds: float


def keys_and_shapes(golden: str) -> dict[str, tuple[int, ...]]:
    """The published names of a network's tensors, with their shapes."""
    network = golden.partition("@")[0]
    lines = (GOLDEN / "keys" / f"{network}.tsv").read_text().splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    return {
        key: () if shape == "scalar" else tuple(map(int, shape.split("x")))
        for key, shape, *_ in rows
    }


def filled(shapes: dict[str, tuple[int, ...]], seed: int = 1) -> dict[str, np.ndarray]:
    """Tensors by the rule; counters and indices, which it leaves out, are zero."""
    return {
        key: np.zeros(shape, np.int64) if value is None else value
        for key, shape in shapes.items()
        for value in [rule.tensor(key, shape, seed)]
    }


def weights(golden: str) -> dict[str, np.ndarray]:
    return filled(keys_and_shapes(golden))


def apply(module, variables, video):
    return taps.apply(module, variables, video, norm_inputs)


@functools.partial(jax.jit, static_argnums=0)
def moments(module, variables, video):
    """Logits, and the mean and standard deviation per channel of every tap.

    Raises:
      AssertionError: the leading axis of a tap is not the video.
    """
    logits, found = apply(module, variables, video)
    of_taps = {}
    for name, tap in found.items():
        assert tap.value.shape[0] == video.shape[0], name
        axes = tuple(range(tap.value.ndim - 1))
        of_taps[name] = (tap.value.mean(axes), tap.value.std(axes))
    return logits, of_taps


def measure(golden: str) -> Parity:
    """Runs one network as its golden file did.

    Raises:
      AssertionError: the file is taken for another naming, a tap has no counterpart
        or its leading axis is not the video.
    """
    start = time.monotonic()
    name, naming_name = NETWORKS[golden]
    stored = np.load(GOLDEN / "public" / f"{golden}.npz")
    source = weights(golden)
    naming = namings.recognise(name, source)
    assert naming.name == naming_name
    model = loading.convert(name, source)
    seed = int(stored["seed"])
    clip = rule.video(int(stored["input_frames"]), int(stored["input_size"]), seed)
    if "@" not in golden:
        assert clip.shape[1:3] == (model.spec.frames, model.spec.size)

    # a layer norm takes away the scale of the pooling convolution before it
    unseen = re.compile(r"bias$|\.pool_[qkv]\.|_index$")
    matrices = [k for k, v in source.items() if v.ndim >= 2 and not unseen.search(k)]
    middle = matrices[len(matrices) // 2]

    with jax.default_matmul_precision("highest"):
        logits, found = jax.device_get(moments(model.module, model.variables, clip))
        source[middle] = source[middle] * 1.01
        changed = rules.convert_tensors(source, naming, model.variables)
        control, _ = jax.device_get(moments(model.module, changed, clip))
    half = model.module.clone(dtype=jnp.bfloat16)
    half_logits = jax.device_get(jax.jit(half.apply)(model.variables, clip))

    off, means, stds = differences(stored, naming, logits, found)
    stored_half = stored["hook_0_std"].dtype == np.float16
    return Parity(
        logits=off,
        means=means,
        stds=stds,
        stds_tolerance=TAPS_TOLERANCE_FLOAT16 if stored_half else TAPS_TOLERANCE,
        control=differences(stored, naming, control, found)[0],
        bfloat16=float(np.linalg.norm(half_logits - logits) / np.linalg.norm(logits)),
        seconds=time.monotonic() - start,
    )


def differences(stored, naming, logits, found) -> tuple[float, float, float]:
    """The largest of logits, and of the means and stds {tap: (mean, std)} of taps.

    In the units of `Parity`.
    """
    hooks = [_tap_of(naming, hook) for hook in stored["hook_names"]]
    assert sorted(hooks) == sorted(found)
    means, stds = [], []
    for i, tap in enumerate(hooks):
        mean = stored[f"hook_{i}_mean"].astype(np.float64)
        std = stored[f"hook_{i}_std"].astype(np.float64)
        rms = np.sqrt((mean**2 + std**2).mean())
        means.append(np.abs(found[tap][0] - mean).max() / rms)
        stds.append(np.abs(found[tap][1] - std).max() / rms)
    off = np.abs(logits - stored["logits"]).max() / stored["logits"].std()
    return float(off), float(max(means)), float(max(stds))


def _tap_of(naming: rules.Naming, hook: str) -> str:
    """Our tap of an upstream module, `name#2` for the second run of one."""
    module, mark, call = hook.partition("#")
    leaf = "/scale" if naming.of_flax else ".weight"
    return rules.target_path(naming, module + leaf) + mark + call


def main(wanted: list[str]) -> None:
    """Prints one row a network."""
    print(f"| {'model':18} | naming | logits | worst tap | 1 % control | bf16 | s |")
    print("|---|---|---|---|---|---|---|")
    for golden, (name, naming) in NETWORKS.items():
        if wanted and not any(word in golden or word in name for word in wanted):
            continue
        clip = "".join(golden.partition("@")[1:])
        found = measure(golden)
        worst = f"{found.means:.1e}"
        if found.stds > found.means:
            worst = f"{found.stds:.1e}"
        if found.stds_tolerance > TAPS_TOLERANCE:
            worst = f"{found.means:.1e} (std {found.stds:.1e}, stored as float16)"
        print(
            f"| {name + clip:18} | {naming} | {found.logits:.1e} | {worst} |"
            f" {found.control:.1e} | {found.bfloat16:.1%} | {found.seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
