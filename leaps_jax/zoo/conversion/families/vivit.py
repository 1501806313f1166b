"""ViViT."""

from leaps_jax.zoo.conversion.rules import Naming

# transformers 4 names tensors as the published files do; a `state_dict()`
# of transformers 5 says layers, q_proj, o_proj and mlp.fc1 instead.
HUGGING_FACE = Naming(
    "huggingface",
    rules=(
        (r"^vivit\.embeddings\.cls_token$", "encoder.class_token"),
        (r"^vivit\.embeddings\.position_embeddings$", "encoder.position_embedding"),
        (r"^vivit\.embeddings\.patch_embeddings\.projection\.", "tubelet_embedding."),
        (r"^vivit\.(encoder\.layer|layers)\.(\d+)\.", r"encoder.block\2."),
        (r"\.attention\.attention\.(query|key|value)\.", r".attention.\1."),
        (r"\.q_proj\.", ".query."),
        (r"\.k_proj\.", ".key."),
        (r"\.v_proj\.", ".value."),
        (r"\.attention\.(output\.dense|o_proj)\.", ".attention.proj."),
        (r"\.layernorm_before\.", ".norm."),
        (r"\.layernorm_after\.", ".mlp_norm."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"^vivit\.layernorm\.", "encoder.norm."),
    ),
    marks=(r"^vivit\.embeddings\.cls_token$", r"^classifier\.weight$"),
)
# Scenic: parameters of Flax, in files within the state of a training run.
SCENIC = Naming(
    "scenic",
    rules=(
        (r"^(optimizer/target/|params/)+", ""),
        (r"^cls$", "encoder/class_token"),
        (r"^cls_SpatialTransformer$", "spatial/class_token"),
        (r"^cls_TemporalTransformer$", "temporal/class_token"),
        (r"^Transformer/", "encoder/"),
        (r"^SpatialTransformer/", "spatial/"),
        (r"^TemporalTransformer/", "temporal/"),
        (r"/posembed_input/pos_embedding$", "/position_embedding"),
        (r"/encoderblock_(\d+)/", r"/block\1/"),
        (r"/LayerNorm_0/", "/norm/"),
        (r"/LayerNorm_1/", "/mlp_norm/"),
        (r"/MultiHeadDotProductAttention_0/", "/attention/"),
        (r"/attention/out/", "/attention/proj/"),
        (r"/MlpBlock_0/Dense_0/", "/mlp/fc1/"),
        (r"/MlpBlock_0/Dense_1/", "/mlp/fc2/"),
        (r"/encoder_norm/", "/norm/"),
        (r"^embedding/", "tubelet_embedding/"),
        (r"^output_projection/", "classifier/"),
        (r"/(kernel|scale)$", ".weight"),
        (r"/bias$", ".bias"),
        (r"/", "."),
    ),
    ignored=(
        (r"^(optimizer/state|opt_state)/", "state of the optimiser"),
        (r"^(global_step|accum_train_time|rng)$", "progress of the training run"),
    ),
    marks=(
        r"(^|/)embedding/kernel$",
        r"Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel$",
        r"(^|/)output_projection/kernel$",
    ),
    of_flax=True,
)

NAMINGS = (HUGGING_FACE, SCENIC)
