"""TimeSformer."""

from leaps_jax.zoo.conversion.rules import Naming

OFFICIAL = Naming(
    "official",
    rules=(
        (r"^model\.", ""),  # some files lack this prefix
        (r"^cls_token$", "class_token"),
        (r"^pos_embed$", "position_embedding"),
        (r"^time_embed$", "time_embedding"),
        (r"^patch_embed\.proj\.", "patch_embedding."),
        (r"^blocks\.(\d+)\.", r"block\1."),
        (r"\.temporal_norm1\.", ".temporal_norm."),
        (r"\.temporal_attn\.", ".temporal_attention."),
        (r"\.temporal_fc\.", ".temporal_dense."),
        (r"\.norm1\.", ".norm."),
        (r"\.attn\.", ".attention."),
        (r"\.norm2\.", ".mlp_norm."),
        (r"^head\.", "classifier."),
    ),
    marks=(
        r"^(model\.)?time_embed$",
        r"^(model\.)?blocks\.0\.temporal_fc\.weight$",
        r"^(model\.)?head\.weight$",
    ),
)
HUGGING_FACE = Naming(
    "huggingface",
    rules=(
        (r"^timesformer\.embeddings\.cls_token$", "class_token"),
        (r"^timesformer\.embeddings\.position_embeddings$", "position_embedding"),
        (r"^timesformer\.embeddings\.time_embeddings$", "time_embedding"),
        (
            r"^timesformer\.embeddings\.patch_embeddings\.projection\.",
            "patch_embedding.",
        ),
        (r"^timesformer\.encoder\.layer\.(\d+)\.", r"block\1."),
        (r"attention\.attention\.qkv\.", "attention.qkv."),
        (r"attention\.output\.dense\.", "attention.proj."),
        (r"\.temporal_layernorm\.", ".temporal_norm."),
        (r"\.layernorm_before\.", ".norm."),
        (r"\.layernorm_after\.", ".mlp_norm."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"^timesformer\.layernorm\.", "norm."),
    ),
    marks=(r"^timesformer\.embeddings\.time_embeddings$", r"^classifier\.weight$"),
)

NAMINGS = (OFFICIAL, HUGGING_FACE)
