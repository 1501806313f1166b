"""UniFormerV2."""

from leaps_jax.zoo.conversion.rules import Naming

# Its attention is torch's nn.MultiheadAttention, with one matrix for q, k and v.
OFFICIAL = Naming(
    "official",
    rules=(
        (r"^backbone\.class_embedding$", "class_token"),
        (r"^backbone\.positional_embedding$", "position_embedding"),
        (r"^backbone\.conv1\.", "patch_embedding."),
        (r"^backbone\.ln_pre\.", "embedding_norm."),
        (r"^backbone\.transformer\.temporal_cls_token$", "summary_token"),
        (r"^backbone\.transformer\.balance$", "balance"),
        (r"^backbone\.transformer\.resblocks\.(\d+)\.ln_1\.", r"block\1.norm."),
        (r"^backbone\.transformer\.resblocks\.(\d+)\.", r"block\1."),
        (r"^backbone\.transformer\.dpe\.(\d+)\.", r"global\1.position."),
        (r"^backbone\.transformer\.dec\.(\d+)\.ln_1\.", r"global\1.summary_norm."),
        (r"^backbone\.transformer\.dec\.(\d+)\.ln_3\.", r"global\1.norm."),
        (r"^backbone\.transformer\.dec\.(\d+)\.", r"global\1."),
        (r"\.ln_2\.", ".mlp_norm."),
        (r"\.attn\.in_proj_(weight|bias)$", r".attention.qkv.\1"),
        (r"\.attn\.out_proj\.", ".attention.proj."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
        (r"^backbone\.transformer\.proj\.0\.", "norm."),
        (r"^backbone\.transformer\.proj\.2\.", "classifier."),
    ),
    marks=(
        r"^backbone\.transformer\.temporal_cls_token$",
        r"^backbone\.transformer\.dec\.0\.attn\.in_proj_weight$",
        r"^backbone\.transformer\.proj\.2\.weight$",
    ),
)

NAMINGS = (OFFICIAL,)
