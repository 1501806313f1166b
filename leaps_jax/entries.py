"""What is known of every model without its weights: one literal table."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from leaps_jax.models import (
    resnet,
    resnet18,
    swin,
    timesformer,
    uniformerv2,
    vivit,
    x3d,
)

Channels = tuple[float, float, float]

MMACTION2 = "https://download.openmmlab.com/mmaction/v1.0/recognition/"
PYTORCHVIDEO = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/"
SCENIC = "https://storage.googleapis.com/scenic-bucket/"
SLOWFAST = "https://dl.fbaipublicfiles.com/pyslowfast/"
SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.4/"
TORCHVISION = "https://download.pytorch.org/models/"
UNIFORMERV2 = "https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com/uniformerv2/"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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


# Clips and addresses from the model zoos of pytorchvideo, SlowFast, mmaction2, Scenic,
# Video Swin and UniFormerV2, whose code is Apache-2.0, of torchvision, whose code is
# BSD-3-Clause (as are the weights they publish with it), and of TimeSformer. The copy
# of Scenic's joint ViViT at Hugging Face has a card of its own.
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
        "r2plus1d_r50",
        "R(2+1)D R50",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["r2plus1d_r50"],
        frames=16,
        stride=4,
        size=224,
        parameters=28_107_600,
        gmacs=57.53,
        taps=69,
        licence="Apache-2.0",
        weights=(PYTORCHVIDEO + "R2PLUS1D_16x4_R50.pyth",),
        namings=("pytorchvideo",),
    ),
    Entry(
        "csn_r50",
        "ir-CSN R50",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["csn_r50"],
        frames=32,
        stride=2,
        size=224,
        parameters=13_131_152,
        gmacs=42.31,
        taps=53,
        licence="Apache-2.0",
        weights=(
            MMACTION2 + "csn/"
            "ircsn_ig65m-pretrained-r50-bnfrozen_8xb12-32x2x1-58e_kinetics400-rgb/"
            "ircsn_ig65m-pretrained-r50-bnfrozen_8xb12-32x2x1-58e_kinetics400-rgb_"
            "20220811-44395bae.pth",
        ),
        namings=("mmaction2", "pytorchvideo"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    Entry(
        "csn_r101",
        "ir-CSN R101",
        "resnet",
        resnet.ResNet,
        resnet.VARIANTS["csn_r101"],
        frames=32,
        stride=2,
        size=224,
        parameters=22_213_776,
        gmacs=56.47,
        taps=104,
        licence="Apache-2.0",
        weights=(PYTORCHVIDEO + "CSN_32x2_R101.pyth",),
        namings=("pytorchvideo",),
    ),
    Entry(
        "r3d_18",
        "R3D-18",
        "resnet18",
        resnet18.ResNet18,
        resnet18.VARIANTS["r3d_18"],
        frames=16,
        stride=2,
        size=112,
        parameters=33_371_472,
        gmacs=40.70,
        taps=20,
        licence="BSD-3-Clause",
        weights=(TORCHVISION + "r3d_18-b3b3357e.pth",),
        namings=("torchvision",),
        mean=(0.43216, 0.394666, 0.37645),
        std=(0.22803, 0.22145, 0.216989),
    ),
    Entry(
        "mc3_18",
        "MC3-18",
        "resnet18",
        resnet18.ResNet18,
        resnet18.VARIANTS["mc3_18"],
        frames=16,
        stride=2,
        size=112,
        parameters=11_695_440,
        gmacs=43.34,
        taps=20,
        licence="BSD-3-Clause",
        weights=(TORCHVISION + "mc3_18-a90a0ba3.pth",),
        namings=("torchvision",),
        mean=(0.43216, 0.394666, 0.37645),
        std=(0.22803, 0.22145, 0.216989),
    ),
    Entry(
        "r2plus1d_18",
        "R(2+1)D-18",
        "resnet18",
        resnet18.ResNet18,
        resnet18.VARIANTS["r2plus1d_18"],
        frames=16,
        stride=2,
        size=112,
        parameters=31_505_325,
        gmacs=40.52,
        taps=37,
        licence="BSD-3-Clause",
        weights=(TORCHVISION + "r2plus1d_18-91a641e6.pth",),
        namings=("torchvision",),
        mean=(0.43216, 0.394666, 0.37645),
        std=(0.22803, 0.22145, 0.216989),
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
    # HR and L: the repository's page has the addresses of the official files. Whether
    # Hugging Face has L for Kinetics-400 is unverified; it would be named as HR is.
    Entry(
        "timesformer_hr",
        "TimeSformer-HR (divided, 16x16)",
        "timesformer",
        timesformer.TimeSformer,
        timesformer.VARIANTS["timesformer_hr"],
        frames=16,
        stride=16,
        size=448,
        parameters=122_024_080,
        gmacs=1703,
        taps=37,
        licence="CC BY-NC 4.0, non-commercial",
        weights=(
            "https://github.com/facebookresearch/TimeSformer",
            "https://huggingface.co/facebook/timesformer-hr-finetuned-k400",
        ),
        namings=("official", "huggingface"),
    ),
    Entry(
        "timesformer_l",
        "TimeSformer-L (divided, 96x4)",
        "timesformer",
        timesformer.TimeSformer,
        timesformer.VARIANTS["timesformer_l"],
        frames=96,
        stride=4,
        size=224,
        parameters=121_633_936,
        gmacs=2380,
        taps=37,
        licence="CC BY-NC 4.0, non-commercial",
        weights=("https://github.com/facebookresearch/TimeSformer",),
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
        "swin_t",
        "Video Swin-T",
        "swin",
        swin.Swin,
        swin.VARIANTS["swin_t"],
        frames=32,
        stride=2,
        size=224,
        parameters=28_158_070,
        gmacs=87.76,
        taps=29,
        licence="Apache-2.0",
        weights=(
            SWIN + "swin_tiny_patch244_window877_kinetics400_1k.pth",
            TORCHVISION + "swin3d_t-7615ae03.pth",
        ),
        namings=("official", "torchvision", "mmaction2"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    Entry(
        "swin_s",
        "Video Swin-S",
        "swin",
        swin.Swin,
        swin.VARIANTS["swin_s"],
        frames=32,
        stride=2,
        size=224,
        parameters=49_816_678,
        gmacs=165.7,
        taps=53,
        licence="Apache-2.0",
        weights=(
            SWIN + "swin_small_patch244_window877_kinetics400_1k.pth",
            TORCHVISION + "swin3d_s-da41c237.pth",
        ),
        namings=("official", "torchvision", "mmaction2"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    Entry(
        "swin_b",
        "Video Swin-B",
        "swin",
        swin.Swin,
        swin.VARIANTS["swin_b"],
        frames=32,
        stride=2,
        size=224,
        parameters=88_048_984,
        gmacs=281.3,
        taps=53,
        licence="Apache-2.0",
        weights=(
            SWIN + "swin_base_patch244_window877_kinetics400_1k.pth",
            SWIN + "swin_base_patch244_window877_kinetics400_22k.pth",
            TORCHVISION + "swin3d_b_1k-24f7c7c6.pth",
            TORCHVISION + "swin3d_b_22k-7c6ae6fa.pth",
        ),
        namings=("official", "torchvision", "mmaction2"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    # UniFormerV2 takes frames from the whole of a clip: the strides are those of ten
    # seconds. No weight depends on the number of frames: a file of L/14 loads as either
    # of its models. Its code is Apache-2.0; the weights started from CLIP's and were
    # trained on Kinetics-710 first, and whether further terms follow is unverified.
    Entry(
        "uniformerv2_b_16_8",
        "UniFormerV2-B/16 (8 frames)",
        "uniformerv2",
        uniformerv2.UniFormerV2,
        uniformerv2.VARIANTS["uniformerv2_b_16_8"],
        frames=8,
        stride=37,
        size=224,
        parameters=114_552_208,
        gmacs=148.1,
        taps=38,
        licence="Apache-2.0 (terms of CLIP and Kinetics-710 unverified)",
        weights=(UNIFORMERV2 + "k400/k400_k710_uniformerv2_b16_8x224.pyth",),
        namings=("official",),
    ),
    Entry(
        "uniformerv2_l_14_8",
        "UniFormerV2-L/14 (8 frames)",
        "uniformerv2",
        uniformerv2.UniFormerV2,
        uniformerv2.VARIANTS["uniformerv2_l_14_8"],
        frames=8,
        stride=37,
        size=224,
        parameters=354_099_600,
        gmacs=665.6,
        taps=62,
        licence="Apache-2.0 (terms of CLIP and Kinetics-710 unverified)",
        weights=(UNIFORMERV2 + "k400/k400_k710_uniformerv2_l14_8x224.pyth",),
        namings=("official",),
    ),
    Entry(
        "uniformerv2_l_14_16",
        "UniFormerV2-L/14 (16 frames)",
        "uniformerv2",
        uniformerv2.UniFormerV2,
        uniformerv2.VARIANTS["uniformerv2_l_14_16"],
        frames=16,
        stride=18,
        size=224,
        parameters=354_099_600,
        gmacs=1331.2,
        taps=62,
        licence="Apache-2.0 (terms of CLIP and Kinetics-710 unverified)",
        weights=(UNIFORMERV2 + "k400/k400_k710_uniformerv2_l14_16x224.pyth",),
        namings=("official",),
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
