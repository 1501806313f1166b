"""What is known of every model without its weights: one literal table."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from leaps_jax.models import mvit, resnet, rev_mvit, timesformer, vivit, x3d

Channels = tuple[float, float, float]

PYTORCHVIDEO = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/"
TORCHVISION = "https://download.pytorch.org/models/"
SCENIC = "https://storage.googleapis.com/scenic-bucket/"
SLOWFAST = "https://dl.fbaipublicfiles.com/pyslowfast/"
MVITV2 = SLOWFAST + "model_zoo/mvitv2/pysf_video_models/"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of a model without its weights.

    Attributes:
      name: in this zoo.
      title: the paper's name.
      family: of architectures that share namings of published weights.
      module: the class of the network.
      fields: keyword arguments of `module`.
      frames: of a clip.
      stride: source frames from one frame of a clip to the next, at about 30 a second.
      size: height and width of a clip, in pixels.
      parameters: with the 400 classes of Kinetics, as counted by `zoo.parameters`.
      gmacs: 1e9 multiply-accumulates of one clip, as counted by `zoo.gmacs`.
      taps: number of norm layers.
      licence: of the public weights.
      weights: where a user gets them.
      namings: the sources whose files convert.
      mean: per RGB channel, of pixels in [0, 1].
      std: likewise.
    """

    name: str
    title: str
    family: str
    module: type[nn.Module]
    fields: Mapping[str, Any]
    frames: int
    stride: int
    size: int
    parameters: int
    gmacs: float
    taps: int
    licence: str = ""
    weights: tuple[str, ...] = ()
    namings: tuple[str, ...] = ()
    mean: Channels = (0.45, 0.45, 0.45)
    std: Channels = (0.225, 0.225, 0.225)


# Clips and addresses from the model zoos of pytorchvideo, SlowFast and Scenic, whose
# code is Apache-2.0 (as are the weights they publish with it), and of TimeSformer. The
# copy of Scenic's joint ViViT at Hugging Face has a card of its own; torchvision
# copied the weights of its MViTs from those zoos.
ENTRIES = (
    Entry(
        "slow_r50",
        "3D R50 (Slow 8x8)",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["slow_r50"],
        frames=8,
        stride=8,
        size=224,
        parameters=32_454_096,
        gmacs=41.74,
        taps=53,
        licence="Apache-2.0",
        weights=(
            PYTORCHVIDEO + "SLOW_8x8_R50.pyth",
            SLOWFAST + "model_zoo/kinetics400/SLOWONLY_8x8_R50.pkl",
        ),
        namings=("pytorchvideo", "slowfast", "caffe2"),
    ),
    Entry(
        "slow_r50_4x16",
        "3D R50 (Slow 4x16)",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["slow_r50_4x16"],
        frames=4,
        stride=16,
        size=224,
        parameters=32_454_096,
        gmacs=20.87,
        taps=53,
        licence="Apache-2.0",
        weights=(
            PYTORCHVIDEO + "SLOW_4x16_R50.pyth",
            SLOWFAST + "model_zoo/kinetics400/SLOWONLY_4x16_R50.pkl",
        ),
        namings=("pytorchvideo", "slowfast", "caffe2"),
    ),
    Entry(
        "i3d_r50",
        "I3D R50",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["i3d_r50"],
        frames=8,
        stride=8,
        size=224,
        parameters=28_043_472,
        gmacs=28.41,
        taps=53,
        licence="Apache-2.0",
        weights=(
            PYTORCHVIDEO + "I3D_8x8_R50.pyth",
            SLOWFAST + "model_zoo/kinetics400/I3D_8x8_R50.pkl",
        ),
        namings=("pytorchvideo_pooled", "slowfast", "caffe2"),
    ),
    Entry(
        "c2d_r50",
        "C2D R50",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["c2d_r50"],
        frames=8,
        stride=8,
        size=224,
        parameters=24_327_632,
        gmacs=19.49,
        taps=53,
        licence="Apache-2.0",
        weights=(PYTORCHVIDEO + "C2D_8x8_R50.pyth",),
        # SlowFast publishes its C2D without the temporal pool: another network
        namings=("pytorchvideo_pooled",),
    ),
    Entry(
        "x3d_xs",
        "X3D-XS",
        "x3d",
        x3d.X3D,
        x3d.VARIANTS["x3d_xs"],
        frames=4,
        stride=12,
        size=160,
        parameters=3_794_322,
        gmacs=0.605,
        taps=84,
        licence="Apache-2.0",
        weights=(SLOWFAST + "x3d_models/x3d_xs.pyth", PYTORCHVIDEO + "X3D_XS.pyth"),
        namings=("pytorchvideo", "slowfast"),
    ),
    Entry(
        "x3d_s",
        "X3D-S",
        "x3d",
        x3d.X3D,
        x3d.VARIANTS["x3d_s"],
        frames=13,
        stride=6,
        size=160,
        parameters=3_794_322,
        gmacs=1.963,
        taps=84,
        licence="Apache-2.0",
        weights=(SLOWFAST + "x3d_models/x3d_s.pyth", PYTORCHVIDEO + "X3D_S.pyth"),
        namings=("pytorchvideo", "slowfast"),
    ),
    Entry(
        "x3d_m",
        "X3D-M",
        "x3d",
        x3d.X3D,
        x3d.VARIANTS["x3d_m"],
        frames=16,
        stride=5,
        size=224,
        parameters=3_794_322,
        gmacs=4.732,
        taps=84,
        licence="Apache-2.0",
        weights=(SLOWFAST + "x3d_models/x3d_m.pyth", PYTORCHVIDEO + "X3D_M.pyth"),
        namings=("pytorchvideo", "slowfast"),
    ),
    Entry(
        "x3d_l",
        "X3D-L",
        "x3d",
        x3d.X3D,
        x3d.VARIANTS["x3d_l"],
        frames=16,
        stride=5,
        size=312,
        parameters=6_153_432,
        gmacs=18.37,
        taps=171,
        licence="Apache-2.0",
        weights=(SLOWFAST + "x3d_models/x3d_l.pyth", PYTORCHVIDEO + "X3D_L.pyth"),
        namings=("pytorchvideo", "slowfast"),
    ),
    Entry(
        "timesformer",
        "TimeSformer (divided, 8x32)",
        "timesformer",
        timesformer.TimeSformer,
        timesformer.VARIANTS["timesformer"],
        frames=8,
        stride=32,
        size=224,
        parameters=121_566_352,
        gmacs=195.8,
        taps=37,
        licence="CC BY-NC 4.0, non-commercial",
        weights=(
            "https://www.dropbox.com/s/g5t24we9gl5yk88/"
            "TimeSformer_divST_8x32_224_K400.pyth?dl=1",
            "https://huggingface.co/facebook/timesformer-base-finetuned-k400",
        ),
        namings=("official", "huggingface"),
    ),
    Entry(
        "vivit_b_16x2",
        "ViViT-B/16x2 (joint)",
        "vivit",
        vivit.ViViT,
        vivit.VARIANTS["vivit_b_16x2"],
        frames=32,
        stride=2,
        size=224,
        parameters=88_954_000,
        gmacs=451.5,
        taps=25,
        licence="Apache-2.0",
        weights=(
            "https://huggingface.co/google/vivit-b-16x2-kinetics400",
            SCENIC + "vivit/kinetics_400/vivit_base_16x2_unfactorized/checkpoint",
        ),
        namings=("huggingface", "scenic"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    Entry(
        "vivit_b_16x2_fe",
        "ViViT-B/16x2 (factorised encoder)",
        "vivit",
        vivit.ViViT,
        vivit.VARIANTS["vivit_b_16x2_fe"],
        frames=32,
        stride=2,
        size=224,
        parameters=115_062_928,
        gmacs=283.3,
        taps=34,
        licence="Apache-2.0",
        weights=(SCENIC + "vivit/kinetics_400/vivit_base_16x2_fe/checkpoint",),
        namings=("scenic",),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    Entry(
        "vivit_l_16x2_fe",
        "ViViT-L/16x2 (factorised encoder)",
        "vivit",
        vivit.ViViT,
        vivit.VARIANTS["vivit_l_16x2_fe"],
        frames=32,
        stride=2,
        size=224,
        parameters=606_827_920,
        gmacs=992.5,
        taps=98,
        licence="Apache-2.0",
        weights=(SCENIC + "vivit/kinetics_400/vivit_large_16x2_fe/checkpoint",),
        namings=("scenic",),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    Entry(
        "mvit_b_16x4",
        "MViT-B (16x4)",
        "mvit",
        mvit.MViT,
        mvit.VARIANTS["mvit_b_16x4"],
        frames=16,
        stride=4,
        size=224,
        parameters=36_610_672,
        gmacs=70.60,
        taps=68,
        licence="Apache-2.0",
        weights=(
            PYTORCHVIDEO + "MVIT_B_16x4.pyth",
            TORCHVISION + "mvit_v1_b-dbeb1030.pth",
        ),
        namings=("pytorchvideo", "torchvision"),
    ),
    Entry(
        "mvitv2_s_16x4",
        "MViTv2-S (16x4)",
        "mvitv2",
        mvit.MViT,
        mvit.VARIANTS["mvitv2_s_16x4"],
        frames=16,
        stride=4,
        size=224,
        parameters=34_537_744,
        gmacs=64.22,
        taps=81,
        licence="Apache-2.0",
        weights=(
            MVITV2 + "MViTv2_S_16x4_k400_f302660347.pyth",
            TORCHVISION + "mvit_v2_s-ae3be167.pth",
        ),
        namings=("slowfast", "torchvision"),
    ),
    Entry(
        "mvitv2_b_32x3",
        "MViTv2-B (32x3)",
        "mvitv2",
        mvit.MViT,
        mvit.VARIANTS["mvitv2_b_32x3"],
        frames=32,
        stride=3,
        size=224,
        parameters=51_230_128,
        gmacs=224.5,
        taps=121,
        licence="Apache-2.0",
        weights=(MVITV2 + "MViTv2_B_32x3_k400_f304025456.pyth",),
        namings=("slowfast",),
    ),
    Entry(
        "rev_mvit_b_16x4",
        "Reversible MViT-B (16x4)",
        "rev_mvit",
        rev_mvit.ReversibleMViT,
        rev_mvit.VARIANTS["rev_mvit_b_16x4"],
        frames=16,
        stride=4,
        size=224,
        parameters=34_963_120,
        gmacs=63.65,
        taps=71,
        licence="Apache-2.0",
        weights=(SLOWFAST + "rev/REV_MVIT_B_16x4.pyth",),
        namings=("slowfast",),
    ),
    # this project's: for data sets of a few thousand short clips
    Entry(
        "slow_r50_small",
        "3D ResNet-26 (small)",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["slow_r50_small"],
        frames=16,
        stride=2,
        size=112,
        parameters=4_958_448,
        gmacs=4.165,
        taps=29,
    ),
    Entry(
        "slow_r50_tiny",
        "3D ResNet-26 (tiny)",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["slow_r50_tiny"],
        frames=16,
        stride=2,
        size=80,
        parameters=2_871_640,
        gmacs=1.286,
        taps=29,
    ),
    Entry(
        "x3d_xs_small",
        "X3D-XS (small)",
        "x3d",
        x3d.X3D,
        x3d.VARIANTS["x3d_xs_small"],
        frames=16,
        stride=2,
        size=112,
        parameters=2_617_638,
        gmacs=0.685,
        taps=42,
    ),
    Entry(
        "timesformer_small",
        "TimeSformer (small)",
        "timesformer",
        timesformer.TimeSformer,
        timesformer.VARIANTS["timesformer_small"],
        frames=16,
        stride=2,
        size=112,
        parameters=4_083_304,
        gmacs=3.695,
        taps=22,
    ),
    Entry(
        "vivit_small",
        "ViViT (small, factorised encoder)",
        "vivit",
        vivit.ViViT,
        vivit.VARIANTS["vivit_small"],
        frames=16,
        stride=2,
        size=112,
        parameters=2_894_440,
        gmacs=1.317,
        taps=17,
    ),
)
