"""The published names of tensors, as literal tables, and how to tell them apart."""

import re
from collections.abc import Iterable

from leaps_jax import zoo
from leaps_jax.conversion.rules import Naming, Rules
from leaps_jax.errors import UserError

BATCH_COUNTER: Rules = (
    (r"\.num_batches_tracked$", "counts training steps; inference does not use it"),
)

# ---- 3D ResNets. pytorchvideo: stem, stages and head are blocks 0, 1 to 4 and 5.
_PYTORCHVIDEO_BLOCK: Rules = (
    (r"^blocks\.0\.", "stem."),
    (r"^blocks\.(\d)\.res_blocks\.(\d+)\.", r"stage\1.block\2."),
    (r"\.branch1_(conv|norm)\.", r".shortcut_\1."),
    (r"\.branch2\.", "."),
)
RESNET_PYTORCHVIDEO = Naming(
    "pytorchvideo",
    rules=(*_PYTORCHVIDEO_BLOCK, (r"^blocks\.5\.proj\.", "classifier.")),
    ignored=BATCH_COUNTER,
    marks=(
        r"^blocks\.0\.conv\.weight$",
        r"^blocks\.1\.res_blocks\.0\.branch2\.conv_b\.weight$",
        r"^blocks\.4\.res_blocks\.2\.branch2",
        r"^blocks\.5\.proj\.weight$",
    ),
)
# I3D and C2D: the temporal pool after stage 1 is block 2, what follows is shifted.
RESNET_PYTORCHVIDEO_POOLED = Naming(
    "pytorchvideo_pooled",
    rules=(
        (r"^blocks\.3\.", "blocks.2."),
        (r"^blocks\.4\.", "blocks.3."),
        (r"^blocks\.5\.", "blocks.4."),
        *_PYTORCHVIDEO_BLOCK,
        (r"^blocks\.6\.proj\.", "classifier."),
    ),
    ignored=BATCH_COUNTER,
    marks=(
        r"^blocks\.0\.conv\.weight$",
        r"^blocks\.5\.res_blocks\.2\.branch2\.conv_b\.weight$",
        r"^blocks\.6\.proj\.weight$",
    ),
)
# SlowFast: the stem is s1, the stages are s2 to s5.
_SLOWFAST_BLOCK: Rules = (
    (r"^s2\.pathway0_res", "stage1.block"),
    (r"^s3\.pathway0_res", "stage2.block"),
    (r"^s4\.pathway0_res", "stage3.block"),
    (r"^s5\.pathway0_res", "stage4.block"),
    (r"\.branch1_bn\.", ".shortcut_norm."),
    (r"\.branch1\.", ".shortcut_conv."),
    (r"\.branch2\.([abc])_bn\.", r".norm_\1."),
    (r"\.branch2\.([abc])\.", r".conv_\1."),
    (r"^s1\.pathway0_stem\.bn\.", "stem.norm."),
    (r"^head\.projection\.", "classifier."),
)
RESNET_SLOWFAST = Naming(
    "slowfast",
    rules=(*_SLOWFAST_BLOCK, (r"^s1\.pathway0_stem\.conv\.", "stem.conv.")),
    ignored=BATCH_COUNTER,
    marks=(
        r"^s1\.pathway0_stem\.conv\.weight$",
        r"^s2\.pathway0_res0\.branch1_bn\.weight$",
        r"^s5\.pathway0_res2\.branch2\.b\.weight$",
        r"^head\.projection\.weight$",
    ),
    absent=(r"^head\.lin_5\.weight$",),  # X3D's
)
# Caffe2 blobs of SlowFast's .pkl files: s, b, rm, riv are scale, bias, running mean
# and (whatever the i stands for) running variance.
RESNET_CAFFE2 = Naming(
    "caffe2",
    rules=(
        (r"_bn_s$", "_bn.weight"),
        (r"_bn_b$", "_bn.bias"),
        (r"_bn_rm$", "_bn.running_mean"),
        (r"_bn_riv$", "_bn.running_var"),
        (r"_w$", ".weight"),
        (r"^pred_b$", "pred.bias"),
        (r"^conv1\.", "stem.conv."),
        (r"^res_conv1_bn\.", "stem.norm."),
        (r"^res2_(\d+)_", r"stage1.block\1."),
        (r"^res3_(\d+)_", r"stage2.block\1."),
        (r"^res4_(\d+)_", r"stage3.block\1."),
        (r"^res5_(\d+)_", r"stage4.block\1."),
        (r"\.branch1_bn\.", ".shortcut_norm."),
        (r"\.branch1\.", ".shortcut_conv."),
        (r"\.branch2([abc])_bn\.", r".norm_\1."),
        (r"\.branch2([abc])\.", r".conv_\1."),
        (r"^pred\.", "classifier."),
    ),
    ignored=(
        (r"momentum", "state of the optimiser"),
        (r"^lr$", "learning rate of the training run"),
        (r"^model_iter$", "step of the training run"),
    ),
    marks=(r"^conv1_w$", r"^res_conv1_bn_riv$", r"^res5_2_branch2c_w$", r"^pred_w$"),
)

# ---- X3D
X3D_SLOWFAST = Naming(
    "slowfast",
    rules=(
        *_SLOWFAST_BLOCK,
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
X3D_PYTORCHVIDEO = Naming(
    "pytorchvideo",
    rules=(
        # the two names are swapped upstream: conv_t is 1x3x3 and conv_xy is 5x1x1
        (r"^blocks\.0\.conv\.conv_t\.", "stem.conv_space."),
        (r"^blocks\.0\.conv\.conv_xy\.", "stem.conv_time."),
        *_PYTORCHVIDEO_BLOCK,
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

# ---- TimeSformer
TIMESFORMER_OFFICIAL = Naming(
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
TIMESFORMER_HUGGING_FACE = Naming(
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

# ---- ViViT. transformers 4 names tensors as the published files do; a `state_dict()`
# of transformers 5 says layers, q_proj, o_proj and mlp.fc1 instead.
VIVIT_HUGGING_FACE = Naming(
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
VIVIT_SCENIC = Naming(
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

# Family of the zoo -> the namings that its weights come in.
NAMINGS: dict[str, tuple[Naming, ...]] = {
    "resnet": (
        RESNET_PYTORCHVIDEO,
        RESNET_PYTORCHVIDEO_POOLED,
        RESNET_SLOWFAST,
        RESNET_CAFFE2,
    ),
    "x3d": (X3D_PYTORCHVIDEO, X3D_SLOWFAST),
    "timesformer": (TIMESFORMER_OFFICIAL, TIMESFORMER_HUGGING_FACE),
    "vivit": (VIVIT_HUGGING_FACE, VIVIT_SCENIC),
}

# A key that only files of this kind have, for the message about a wrong file.
FOREIGN = (
    (r"\.conv_b\.conv_xy\.", "an R(2+1)D of pytorchvideo"),
    (
        r"^blocks\.3\.res_blocks\.22\.branch2\.norm_b\.weight$",
        "a 3D ResNet-101 (CSN for example)",
    ),
    (r"^layer1\.0\.conv1\.", "a video ResNet-18 of torchvision"),
    (r"\.F\.attn\.", "a reversible MViT"),
    (r"relative_position_bias_table$", "a Video Swin"),
    (r"^backbone\.transformer\.dec\.", "a UniFormerV2"),
    (r"\.attn\.pool_[qk]|\.attn\.(norm_q|_attention_pool)", "an MViT"),
    (r"^s1\.pathway1_stem\.|^t_conv1_w$", "a two-pathway SlowFast"),
)


def recognise(name: str, keys: Iterable[str]) -> Naming:
    """The naming of a file for the model `name`, from the keys of its tensors.

    Raises:
      UserError: these are no weights of that model; the message says what they look
        like.

    >>> recognise("slow_r50", ["conv1_w", "res_conv1_bn_riv", "res5_2_branch2c_w",
    ...                        "pred_w"]).name
    'caffe2'
    """
    entry, found = zoo.entry(name), set(keys)
    foreign = next((w for k, w in FOREIGN if any(re.search(k, f) for f in found)), "")
    for naming in NAMINGS[entry.family]:
        if not foreign and naming.name in entry.namings and naming.matches(found):
            return naming
    looks = foreign or " or ".join(_models_with(found))
    example = ", ".join(sorted(found)[:3])
    looks = f"they look like {looks}" if looks else f"found {example}, …"
    known = " or ".join(entry.namings) or "no published source"
    raise UserError(f"these are not weights of {name} as named by {known}; {looks}")


def siblings(name: str, naming: Naming) -> list[str]:
    """The other models whose published weights are named alike."""
    family = zoo.entry(name).family
    return [
        other
        for other in zoo.names()
        if other != name
        and zoo.entry(other).family == family
        and naming.name in zoo.entry(other).namings
    ]


def _models_with(keys: set[str]) -> list[str]:
    return [
        other
        for other in zoo.names()
        for naming in NAMINGS[zoo.entry(other).family]
        if naming.name in zoo.entry(other).namings and naming.matches(keys)
    ]
