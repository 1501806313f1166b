"""3D ResNets of 18 layers: R3D, MC3 and R(2+1)D."""

from leaps_jax.zoo.conversion.rules import BATCH_COUNTER, Naming

# A factorised convolution is a sequence: space, norm, ReLU, time. The factorised stem
# goes on after its ReLU, with 3 and 4.
TORCHVISION = Naming(
    "torchvision",
    rules=(
        (r"^stem\.0\.", "stem.conv."),
        (r"^stem\.1\.", "stem.norm."),
        (r"^stem\.3\.", "stem.conv_time."),
        (r"^stem\.4\.", "stem.norm_time."),
        (r"^layer(\d)\.(\d)\.", r"stage\1.block\2."),
        (r"\.downsample\.0\.", ".shortcut_conv."),
        (r"\.downsample\.1\.", ".shortcut_norm."),
        (r"\.conv1\.1\.", ".norm_a."),
        (r"\.conv2\.1\.", ".norm_b."),
        (r"\.conv1\.0\.", ".conv_a."),
        (r"\.conv2\.0\.", ".conv_b."),
        (r"\.conv_([ab])\.0\.", r".conv_\1.conv_space."),
        (r"\.conv_([ab])\.1\.", r".conv_\1.norm."),
        (r"\.conv_([ab])\.3\.", r".conv_\1.conv_time."),
        (r"^fc\.", "classifier."),
    ),
    ignored=BATCH_COUNTER,
    marks=(
        r"^stem\.0\.weight$",
        r"^layer1\.0\.conv1\.0\.",
        r"^layer4\.1\.conv2\.1\.running_var$",
        r"^fc\.weight$",
    ),
)

NAMINGS = (TORCHVISION,)
