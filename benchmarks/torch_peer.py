"""The same update step in PyTorch, timed: what `leaps-jax bench` is compared with.

    python benchmarks/torch_peer.py slow_r50 eager tuned compile --batch 8
    python benchmarks/torch_peer.py x3d_xs eager --batch 1 --frames 16 --size 80
        --device cpu

`eager` is how a user of hooks and autocast runs it (float16 on a GPU), `tuned` takes
bfloat16 and channels-last, `compile` is tuned and compiled. Weights are frozen and
random. A step rolls the video, runs the model with the mean of every norm's input and
a verifier with batch moments (X3D-XS at 4 x 182 x 182, or the demo's ViViT), and takes
cross-entropy, priming, coherence, diversity and L2 to the video's gradient, Adam and
clipping. Needs torch, torchvision, transformers and pytorchvideo with what it imports.
"""

import argparse
import gc
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

#: frames and size of each model's published input
INPUTS = {
    "x3d_xs": (4, 182),
    "slow_r50": (8, 224),
    "r2plus1d_r50": (16, 224),
    "csn_r101": (32, 224),
    "r3d_18": (16, 112),
    "swin3d_t": (32, 224),
    "mvit_v2_s": (16, 224),
    "timesformer": (8, 224),
    "vivit_b_16x2": (32, 224),
    "vivit_small": (16, 112),
    "slow_r50_tiny": (16, 80),
}


VERIFIERS = {"x3d_xs": (4, 182), "vivit_small": (16, 112)}


class HuggingFace(nn.Module):
    """Takes (b, c, t, h, w) and returns logits, as the others do."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, video):
        return self.network(pixel_values=video.transpose(1, 2)).logits


class SmallViViT(nn.Module):
    """`vivit_small`: a convolutional stem, four spatial and two temporal blocks."""

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 96)
        self.stem = nn.ModuleList()
        for i, k in enumerate((1, 1, 3)):
            sizes = {"stride": (1, 2, 2), "padding": (k // 2, 1, 1), "bias": False}
            self.stem.append(nn.Conv3d(*widths[i : i + 2], (k, 3, 3), **sizes))
        self.stem_norms = nn.ModuleList(map(nn.LayerNorm, widths[1:]))
        self.tubelets = nn.Conv3d(96, 192, 2, stride=2)
        self.tokens = nn.ParameterList([torch.randn(192), torch.randn(192)])
        self.positions = nn.ParameterList([torch.randn(50, 192), torch.randn(9, 192)])
        self.encoders = nn.ModuleList(self.encoder(depth) for depth in (4, 2))
        self.head = nn.Linear(192, 23)

    @staticmethod
    def encoder(depth: int) -> nn.Module:
        block = nn.TransformerEncoderLayer(
            192, 3, 704, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        return nn.TransformerEncoder(
            block, depth, nn.LayerNorm(192), enable_nested_tensor=False
        )

    def forward(self, video):
        x = video
        for convolution, norm in zip(self.stem, self.stem_norms, strict=True):
            x = norm(convolution(x).movedim(1, -1)).movedim(-1, 1)
            x = F.gelu(x, approximate="tanh")
        x = self.tubelets(x)  # b c t h w
        b, c, t, *_ = x.shape
        x = x.movedim(2, 1).reshape(b * t, c, -1).mT
        for token, position, encoder in zip(
            self.tokens, self.positions, self.encoders, strict=True
        ):
            x = torch.cat([token.expand(len(x), 1, c), x], 1)
            x = encoder(x + position)[:, 0].reshape(b, -1, c)
        return self.head(x[:, 0])


class Bottleneck(nn.Module):
    """A block of `TinyResNet`."""

    def __init__(self, width: int, inner: int, stride: int):
        super().__init__()
        strides = (1, stride, stride)
        self.shortcut = nn.Identity()
        if width != 4 * inner:
            self.shortcut = normed(width, 4 * inner, (1, 1, 1), strides)
        self.a = normed(width, inner, (3, 1, 1))
        self.b = normed(inner, inner, (1, 3, 3), strides)
        self.c = normed(inner, 4 * inner, (1, 1, 1))

    def forward(self, x):
        y = F.relu(self.b(F.relu(self.a(x))))
        return F.relu(self.c(y) + self.shortcut(x))


class TinyResNet(nn.Module):
    """`slow_r50_tiny`: four stages of two bottlenecks."""

    def __init__(self):
        super().__init__()
        self.stem = normed(3, 24, (3, 7, 7), (1, 2, 2))
        blocks, width = [], 24
        for stage, inner in enumerate((24, 48, 96, 192)):
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(Bottleneck(width, inner, stride))
                width = 4 * inner
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 400)

    def forward(self, video):
        x = F.max_pool3d(F.relu(self.stem(video)), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        return self.head(self.blocks(x).mean((2, 3, 4)))


def normed(width: int, features: int, kernel, stride=(1, 1, 1)) -> nn.Module:
    """A convolution without a bias, and a batch norm."""
    padding = tuple(k // 2 for k in kernel)
    convolution = nn.Conv3d(width, features, kernel, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(features))


def build(name: str, frames: int, size: int) -> nn.Module:
    """The peer of one of our networks, with random weights."""
    if name == "vivit_small":
        return SmallViViT()
    if name == "slow_r50_tiny":
        return TinyResNet()
    if name == "x3d_xs":
        from pytorchvideo.models.x3d import create_x3d

        return create_x3d(input_clip_length=frames, input_crop_size=size)
    if name in ("slow_r50", "csn_r101", "r2plus1d_r50"):
        from pytorchvideo.models import hub

        return getattr(hub, name)(pretrained=False)
    if name in ("r3d_18", "swin3d_t", "mvit_v2_s"):
        import torchvision.models.video

        return getattr(torchvision.models.video, name)()
    import transformers

    if name == "timesformer":
        config = transformers.TimesformerConfig(num_labels=400, num_frames=frames)
        return HuggingFace(transformers.TimesformerForVideoClassification(config))
    config = transformers.VivitConfig(num_labels=400, num_frames=frames)
    return HuggingFace(transformers.VivitForVideoClassification(config))


class Tap:
    """The input of a norm, its mean, and how far its moments are from natural ones."""

    def __init__(self, module: nn.Module):
        self.of_batch = isinstance(module, nn.BatchNorm3d)
        self.channel = 1 if self.of_batch else -1
        if self.of_batch:
            self.natural = module.running_mean, module.running_var
        else:
            self.natural = torch.zeros_like(module.weight), torch.ones_like(module.bias)
        module.register_forward_hook(self.look)

    def look(self, module, inputs, _) -> None:
        self.value = inputs[0]
        x = self.value.float()
        axes = list(range(x.ndim))
        del axes[self.channel]
        self.mean = x.mean(axes[1:])
        mean, var = self.natural
        self.gap = (mean - x.mean(axes)).norm()
        self.gap = self.gap + (var - x.var(axes, unbiased=False)).norm()


def taps(network: nn.Module) -> list[Tap]:
    """Registers a hook that records the input of every norm layer."""
    norms = (nn.BatchNorm3d, nn.LayerNorm)
    return [Tap(module) for module in network.modules() if isinstance(module, norms)]


def jaccard_distance(a, b):
    """1 - the Tanimoto likeness of two vectors."""
    dot = (a * b).sum(-1)
    return 1 - dot / (a.square().sum(-1) + b.square().sum(-1) - dot + 1e-8)


def measure(
    name: str,
    mode: str,
    batch: int,
    frames: int,
    size: int,
    judge: str,
    device: str,
    steps: int,
) -> dict:
    """Times the step of a model in one mode."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    cuda = device == "cuda"
    model = build(name, frames, size).to(device).eval()
    verifier = build(judge, *VERIFIERS[judge]).to(device).eval()
    if mode != "eager":
        verifier = verifier.to(memory_format=torch.channels_last_3d)
        if not isinstance(model, HuggingFace):
            model = model.to(memory_format=torch.channels_last_3d)
    for parameter in [*model.parameters(), *verifier.parameters()]:
        parameter.requires_grad_(False)
    dtype = torch.float16 if mode == "eager" else torch.bfloat16
    model_taps, verifier_taps = taps(model), taps(verifier)

    shape = (batch, 3, frames, size, size)
    video = torch.randn(shape, device=device, requires_grad=True)
    label = torch.randint(23, (batch,), device=device)
    optimizer = torch.optim.Adam([video], lr=0.6, betas=(0.5, 0.9), fused=cuda)

    def seen_by(network, x):
        with torch.autocast(device, dtype, enabled=cuda):
            return network(x)

    with torch.no_grad():
        seen_by(model, torch.rand(shape, device=device))
        primed = [tap.mean for tap in model_taps]

    def loss_of(x):
        shown = x
        if (frames, size) != VERIFIERS[judge]:
            t, side = VERIFIERS[judge]
            shown = x[:, :, :: max(frames // t, 1)][:, :, :t]
            shown = F.interpolate(shown, size=(t, side, side))
        logits = seen_by(model, x)
        seen_by(verifier, shown)
        last = next(tap for tap in reversed(model_taps) if tap.value.ndim >= 3)
        axis = 2 if last.of_batch else 1
        priming = sum(
            jaccard_distance(tap.mean, target).mean()
            for tap, target in zip(model_taps, primed, strict=True)
        )
        return (
            F.cross_entropy(logits.float(), label)
            + priming / len(model_taps)
            + 0.05 * sum(tap.gap for tap in verifier_taps)
            + 0.05 * last.value.float().diff(dim=axis).abs().mean()
            + 1e-4 * x.flatten(1).norm(dim=1).mean()
        )

    run = torch.compile(loss_of) if mode == "compile" else loss_of

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        run(torch.roll(video, (3, 5), (-2, -1))).backward()
        optimizer.step()
        with torch.no_grad():
            video.clamp_(-2.1, 2.6)

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    times = []
    for _ in range(6):  # the first is not counted
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        times.append(1e3 * (time.perf_counter() - start) / steps)
    return {
        "model": name,
        "mode": mode,
        "batch": batch,
        "frames": frames,
        "size": size,
        "verifier": judge,
        "ms_per_step": round(statistics.median(times[1:]), 3),
        "ms_per_step_of_calls": [round(t, 3) for t in times[1:]],
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if cuda
        else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "versions": {"torch": torch.__version__},
    }


def main() -> None:
    """Reads the arguments and prints a line of JSON for each mode."""
    parser = argparse.ArgumentParser(description="Time the step of LEAPS in PyTorch.")
    parser.add_argument("model", choices=INPUTS)
    parser.add_argument("modes", nargs="+", choices=["eager", "tuned", "compile"])
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--verifier", default="x3d_xs", choices=VERIFIERS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--steps", type=int, default=20, help="of one call; 5 are timed"
    )
    options = parser.parse_args()
    frames, size = INPUTS[options.model]
    for mode in options.modes:
        report = measure(
            options.model,
            mode,
            options.batch,
            options.frames or frames,
            options.size or size,
            options.verifier,
            options.device,
            options.steps,
        )
        print(json.dumps(report), flush=True)
        if options.device == "cuda":  # nothing is left of one mode for the next
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
