"""MViT, MViTv2 and the reversible MViT."""

from leaps_jax.zoo.conversion.rules import Naming, Rules

RELATIVE: Rules = (
    (r"\.attn\.rel_pos_t$", ".attention.relative_position.time"),
    (r"\.attn\.rel_pos_h$", ".attention.relative_position.height"),
    (r"\.attn\.rel_pos_w$", ".attention.relative_position.width"),
)
# Of pytorchvideo and SlowFast.
ATTENTION: Rules = (
    (r"\.attn\.pool_([qkv])\.", r".attention.pool_\1.conv."),
    (r"\.attn\.norm_([qkv])\.", r".attention.pool_\1.norm."),
    (r"\.attn\.", ".attention."),
)
BLOCK: Rules = (
    (r"^blocks\.(\d+)\.proj\.", r"block\1.widen."),
    (r"^blocks\.(\d+)\.", r"block\1."),
    (r"\.norm1\.", ".norm."),
    (r"\.norm2\.", ".mlp_norm."),
    *RELATIVE,
    *ATTENTION,
)
# Of torchvision.
TORCHVISION_RULES: Rules = (
    (r"^conv_proj\.", "patch_embedding."),
    (r"^pos_encoding\.class_token$", "class_token"),
    (r"^pos_encoding\.class_pos$", "class_position"),
    (r"^pos_encoding\.spatial_pos$", "position.space"),
    (r"^pos_encoding\.temporal_pos$", "position.time"),
    (r"^blocks\.(\d+)\.project\.", r"block\1.widen."),
    (r"^blocks\.(\d+)\.", r"block\1."),
    (r"\.norm1\.", ".norm."),
    (r"\.norm2\.", ".mlp_norm."),
    *RELATIVE,
    (r"\.attn\.project\.0\.", ".attention.proj."),
    (r"\.attn\.pool_([qkv])\.pool\.", r".attention.pool_\1.conv."),
    (r"\.attn\.pool_([qkv])\.norm_act\.0\.", r".attention.pool_\1.norm."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^head\.1\.", "classifier."),
)

MVIT = (
    Naming(
        "pytorchvideo",
        rules=(
            (r"^patch_embed\.patch_model\.", "patch_embedding."),
            (r"^cls_positional_encoding\.cls_token$", "class_token"),
            (r"^cls_positional_encoding\.pos_embed_class$", "class_position"),
            (r"^cls_positional_encoding\.pos_embed_spatial$", "position.space"),
            (r"^cls_positional_encoding\.pos_embed_temporal$", "position.time"),
            *BLOCK,
            (r"^norm_embed\.", "norm."),
            (r"^head\.proj\.", "classifier."),
        ),
        stacked=((".attn.q.", ".attn.k.", ".attn.v."), ".attn.qkv."),
        marks=(
            r"^cls_positional_encoding\.pos_embed_spatial$",
            r"^blocks\.0\.attn\.pool_k\.weight$",
            r"^head\.proj\.weight$",
        ),
        # its norms after pooling are torch's, all others are told 1e-6
        overrides=(("pool_epsilon", 1e-5),),
    ),
    Naming(
        "torchvision",
        rules=TORCHVISION_RULES,
        marks=(
            r"^pos_encoding\.spatial_pos$",
            r"^blocks\.0\.attn\.pool_k\.pool\.weight$",
            r"^head\.1\.weight$",
        ),
    ),
)
MVITV2 = (
    Naming(
        "slowfast",
        rules=(
            (r"^cls_token$", "class_token"),
            (r"^patch_embed\.proj\.", "patch_embedding."),
            *BLOCK,
            (r"^head\.projection\.", "classifier."),
        ),
        marks=(
            r"^cls_token$",
            r"^blocks\.0\.attn\.rel_pos_t$",
            r"^blocks\.0\.attn\.pool_q\.weight$",
            r"^head\.projection\.weight$",
        ),
    ),
    Naming(
        "torchvision",
        rules=TORCHVISION_RULES,
        marks=(
            r"^pos_encoding\.class_token$",
            r"^blocks\.0\.attn\.rel_pos_t$",
            r"^blocks\.0\.attn\.pool_q\.pool\.weight$",
            r"^head\.1\.weight$",
        ),
    ),
)
# F is attention and G the MLP: the paper's names of what updates the streams.
REVERSIBLE = (
    Naming(
        "slowfast",
        rules=(
            (r"^pos_embed_spatial$", "position.space"),
            (r"^pos_embed_temporal$", "position.time"),
            (r"^patch_embed\.proj\.", "patch_embedding."),
            (r"^rev_backbone\.layers\.(\d+)\.", r"block\1."),
            (r"\.res_proj\.", ".widen."),
            (r"\.F\.norm\.", ".norm."),
            (r"\.F\.attn\.", ".attn."),
            (r"\.G\.norm\.", ".mlp_norm."),
            (r"\.G\.mlp\.", ".mlp."),
            *ATTENTION,
            (r"^head\.projection\.", "classifier."),
        ),
        marks=(
            r"^rev_backbone\.layers\.0\.F\.attn\.qkv\.weight$",
            r"^pos_embed_spatial$",
            r"^head\.projection\.weight$",
        ),
    ),
)
