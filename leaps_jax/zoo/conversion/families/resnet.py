"""3D ResNets of bottleneck blocks: Slow, I3D, C2D, R(2+1)D and CSN."""

from leaps_jax.zoo.conversion.rules import BATCH_COUNTER, Naming, Rules

# pytorchvideo: stem, stages and head are blocks 0, 1 to 4 and 5.
PYTORCHVIDEO_BLOCK: Rules = (
    (r"^blocks\.0\.", "stem."),
    (r"^blocks\.(\d)\.res_blocks\.(\d+)\.", r"stage\1.block\2."),
    (r"\.branch1_(conv|norm)\.", r".shortcut_\1."),
    (r"\.branch2\.", "."),
)
PYTORCHVIDEO = Naming(
    "pytorchvideo",
    rules=(
        *PYTORCHVIDEO_BLOCK,
        # R(2+1)D's
        (r"\.conv_b\.conv_t\.", ".conv_b.conv_time."),
        (r"\.conv_b\.conv_xy\.", ".conv_b.conv_space."),
        (r"^blocks\.5\.proj\.", "classifier."),
    ),
    ignored=BATCH_COUNTER,
    marks=(
        r"^blocks\.0\.conv\.weight$",
        r"^blocks\.1\.res_blocks\.0\.branch2\.conv_b\.(conv_xy\.)?weight$",
        r"^blocks\.4\.res_blocks\.2\.branch2",
        r"^blocks\.5\.proj\.weight$",
    ),
    overrides=(("norm_epsilon", 1e-5),),
)
# I3D and C2D: the temporal pool after stage 1 is block 2, what follows is shifted.
PYTORCHVIDEO_POOLED = Naming(
    "pytorchvideo_pooled",
    rules=(
        (r"^blocks\.3\.", "blocks.2."),
        (r"^blocks\.4\.", "blocks.3."),
        (r"^blocks\.5\.", "blocks.4."),
        *PYTORCHVIDEO_BLOCK,
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
SLOWFAST_BLOCK: Rules = (
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
SLOWFAST = Naming(
    "slowfast",
    rules=(*SLOWFAST_BLOCK, (r"^s1\.pathway0_stem\.conv\.", "stem.conv.")),
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
CAFFE2 = Naming(
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
# mmaction2: the middle convolution of CSN is the only one of a sequence.
MMACTION2 = Naming(
    "mmaction2",
    rules=(
        (r"^backbone\.conv1\.conv\.", "stem.conv."),
        (r"^backbone\.conv1\.bn\.", "stem.norm."),
        (r"^backbone\.layer(\d)\.(\d+)\.", r"stage\1.block\2."),
        (r"\.downsample\.conv\.", ".shortcut_conv."),
        (r"\.downsample\.bn\.", ".shortcut_norm."),
        (r"\.conv1\.conv\.", ".conv_a."),
        (r"\.conv1\.bn\.", ".norm_a."),
        (r"\.conv2\.0\.conv\.", ".conv_b."),
        (r"\.conv2\.0\.bn\.", ".norm_b."),
        (r"\.conv3\.conv\.", ".conv_c."),
        (r"\.conv3\.bn\.", ".norm_c."),
        (r"^cls_head\.fc_cls\.", "classifier."),
    ),
    ignored=BATCH_COUNTER,
    marks=(
        r"^backbone\.conv1\.conv\.weight$",
        r"^backbone\.layer4\.2\.conv2\.0\.bn\.running_var$",
        r"^cls_head\.fc_cls\.weight$",
    ),
    overrides=(("norm_epsilon", 1e-3),),
)

NAMINGS = (PYTORCHVIDEO, PYTORCHVIDEO_POOLED, SLOWFAST, CAFFE2, MMACTION2)
