"""X3D."""

from leaps_jax.zoo.conversion.families.resnet import PYTORCHVIDEO_BLOCK, SLOWFAST_BLOCK
from leaps_jax.zoo.conversion.rules import BATCH_COUNTER, Naming

SLOWFAST = Naming(
    "slowfast",
    rules=(
        *SLOWFAST_BLOCK,
        (r"^s1\.pathway0_stem\.conv_xy\.", "stem.conv_space."),
        (r"^s1\.pathway0_stem\.conv\.", "stem.conv_time."),
        (r"\.branch2\.se\.fc1\.", ".gate.squeeze."),
        (r"\.branch2\.se\.fc2\.", ".gate.excite."),
        (r"^head\.conv_5\.", "head.conv."),
        (r"^head\.conv_5_bn\.", "head.norm."),
        (r"^head\.lin_5\.", "head.expand."),
    ),
    ignored=BATCH_COUNTER,
    marks=(r"^s1\.pathway0_stem\.conv_xy\.weight$", r"^head\.lin_5\.weight$"),
    overrides=(("shortcut_norm_on_stride", True),),
)
PYTORCHVIDEO = Naming(
    "pytorchvideo",
    rules=(
        # the two names are swapped upstream: conv_t is 1x3x3 and conv_xy is 5x1x1
        (r"^blocks\.0\.conv\.conv_t\.", "stem.conv_space."),
        (r"^blocks\.0\.conv\.conv_xy\.", "stem.conv_time."),
        *PYTORCHVIDEO_BLOCK,
        (r"\.norm_b\.0\.", ".norm_b."),
        (r"\.norm_b\.1\.block\.0\.", ".gate.squeeze."),
        (r"\.norm_b\.1\.block\.2\.", ".gate.excite."),
        (r"^blocks\.5\.pool\.pre_conv\.", "head.conv."),
        (r"^blocks\.5\.pool\.pre_norm\.", "head.norm."),
        (r"^blocks\.5\.pool\.post_conv\.", "head.expand."),
        (r"^blocks\.5\.proj\.", "classifier."),
    ),
    ignored=BATCH_COUNTER,
    marks=(
        r"^blocks\.0\.conv\.conv_t\.weight$",
        r"\.norm_b\.1\.block\.0\.weight$",
        r"^blocks\.5\.pool\.post_conv\.weight$",
    ),
    overrides=(("shortcut_norm_on_stride", False),),
)

NAMINGS = (PYTORCHVIDEO, SLOWFAST)
