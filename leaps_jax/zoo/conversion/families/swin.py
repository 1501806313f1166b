"""Video Swin."""

from leaps_jax.zoo.conversion.rules import Naming, Rules

BLOCK: Rules = (
    (r"^patch_embed\.proj\.", "patch_embedding."),
    (r"^patch_embed\.norm\.", "patch_norm."),
    (r"\.norm1\.", ".norm."),
    (r"\.attn\.", ".attention."),
    (r"\.relative_position_bias_table$", ".relative_position_bias"),
    (r"\.norm2\.", ".mlp_norm."),
)
IGNORED: Rules = (
    (r"\.relative_position_index$", "follows from the window; computed anew"),
)
OFFICIAL_BLOCK: Rules = (
    (r"^backbone\.", ""),
    (r"^layers\.0\.downsample\.", "merging1."),
    (r"^layers\.1\.downsample\.", "merging2."),
    (r"^layers\.2\.downsample\.", "merging3."),
    (r"^layers\.0\.blocks\.", "stage1.block"),
    (r"^layers\.1\.blocks\.", "stage2.block"),
    (r"^layers\.2\.blocks\.", "stage3.block"),
    (r"^layers\.3\.blocks\.", "stage4.block"),
    *BLOCK,
    (r"^cls_head\.fc_cls\.", "classifier."),
)
OFFICIAL_MARKS = (
    r"^backbone\.layers\.0\.blocks\.0\.attn\.relative_position_bias_table$",
    r"^cls_head\.fc_cls\.weight$",
)
OFFICIAL = Naming(
    "official",
    rules=OFFICIAL_BLOCK,
    ignored=IGNORED,
    marks=(*OFFICIAL_MARKS, r"^backbone\.norm\.weight$"),
)
# mmaction2 numbers the last norm by its stage, from 0.
MMACTION2 = Naming(
    "mmaction2",
    rules=((r"^backbone\.norm3\.", "norm."), *OFFICIAL_BLOCK),
    ignored=IGNORED,
    marks=(*OFFICIAL_MARKS, r"^backbone\.norm3\.weight$"),
)
# torchvision: stages are features 0, 2, 4 and 6, what merges patches 1, 3 and 5.
TORCHVISION = Naming(
    "torchvision",
    rules=(
        (r"^features\.1\.(norm|reduction)\.", r"merging1.\1."),
        (r"^features\.3\.(norm|reduction)\.", r"merging2.\1."),
        (r"^features\.5\.(norm|reduction)\.", r"merging3.\1."),
        (r"^features\.0\.", "stage1.block"),
        (r"^features\.2\.", "stage2.block"),
        (r"^features\.4\.", "stage3.block"),
        (r"^features\.6\.", "stage4.block"),
        *BLOCK,
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
        (r"^head\.", "classifier."),
    ),
    ignored=IGNORED,
    marks=(
        r"^features\.0\.0\.attn\.relative_position_bias_table$",
        r"^features\.6\.1\.norm2\.weight$",
        r"^head\.weight$",
    ),
)

NAMINGS = (OFFICIAL, MMACTION2, TORCHVISION)
