"""Training images/s of a model of ours beside `transformers`' RTDetr doing the same step in the same run.

    python benchmarks/training_step.py --model rtdetr-r18 --image-size 224 --batch-size 8

Both sides: forward, matching, loss of every layer with denoising, backward, clipped gradients, fused AdamW, on the
same pictures and boxes, with the same numbers of queries and denoising queries, threads and allocator. Rounds are
interleaved; rates are medians, and the last line is the median over rounds of the ratio to the best of `transformers`
in the same round, which a disturbance of the machine touches least. Weights are random: nothing about the time of a
step depends on them.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # for both sides, as `setdet train` sets it

import torch
from torch import Tensor, nn
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

from setdet.losses.config import LossConfig
from setdet.losses.criterion import Criterion
from setdet.models.denoising import make_denoising_queries
from setdet.models.rtdetr import build_model
from setdet.models.variants import MODELS, ModelConfig, ResNetConfig
from setdet.targets import Targets
from setdet.training.config import TrainConfig
from setdet.training.devices import keep_memory
from setdet.training.optim import build_optimizer, parameter_groups

NUM_CLASSES = 6
Step = Callable[[], Tensor]


def make_batch(batch_size: int, image_size: int, *, seed: int) -> tuple[Tensor, Targets]:
    """Noise pictures with one to five boxes each."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch_size, 3, image_size, image_size, generator=generator)
    counts = torch.randint(1, 6, (batch_size,), generator=generator)
    boxes = torch.rand(int(counts.sum()), 4, generator=generator) * 0.3 + 0.2
    labels = torch.randint(NUM_CLASSES, (len(boxes),), generator=generator)
    return images, Targets(labels=labels, boxes_cxcywh=boxes, counts=tuple(counts.tolist()))


def optimiser_for(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)


def finish(loss: Tensor, model: nn.Module, optimiser: torch.optim.Optimizer) -> Tensor:
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimiser.step()
    optimiser.zero_grad()
    return loss.detach()


def our_step(config: ModelConfig, images: Tensor, targets: Targets, *, denoising: int) -> Step:
    """bfloat16 autocast and channels-last, as `setdet train` runs on a CPU."""
    model = build_model(config).train().to(memory_format=torch.channels_last)
    optimiser = build_optimizer(parameter_groups(model, TrainConfig(learning_rate=1e-4)), precision="bf16")
    criterion = Criterion(config=LossConfig(), num_classes=NUM_CLASSES)
    generator = torch.Generator().manual_seed(0)
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> Tensor:
        queries = make_denoising_queries(targets, num_classes=NUM_CLASSES, queries=denoising, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(images, queries)
        terms = criterion(output, targets, queries)
        return finish(torch.stack(list(terms.values())).sum(), model, optimiser)

    return step


def their_step(
    config: ModelConfig, images: Tensor, targets: Targets, *, denoising: int, bfloat16: bool, channels_last: bool
) -> Step:
    """`transformers`' model with its own loss."""
    backbone = config.backbone
    if not isinstance(backbone, ResNetConfig):
        raise SystemExit("The comparison is written for ResNet-vd models.")
    hidden_sizes = [64 if backbone.block == "basic" else 256, *backbone.channels]
    resnet = RTDetrResNetConfig(
        embedding_size=64,
        hidden_sizes=hidden_sizes,
        depths=list(backbone.blocks),
        layer_type=backbone.block,
        out_features=["stage2", "stage3", "stage4"],
    )
    model = RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=resnet,
            encoder_in_channels=hidden_sizes[1:],
            hidden_expansion=config.encoder.expansion,
            decoder_layers=config.decoder.layers,
            num_queries=config.decoder.queries,
            num_labels=NUM_CLASSES,
            num_denoising=denoising,
            freeze_backbone_batch_norms=False,
            anchor_image_size=None,
        )
    ).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimiser = optimiser_for(model)
    labels = [
        {"class_labels": labels, "boxes": boxes}
        for labels, boxes in zip(
            targets.labels.split(targets.counts), targets.boxes_cxcywh.split(targets.counts), strict=True
        )
    ]

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model(pixel_values=images, labels=labels).loss
        return finish(loss, model, optimiser)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="rtdetr-r18", choices=[n for n in MODELS if "-r" in n])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--denoising", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--keep-memory", action="store_true", help="both sides, as `setdet train` has it")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    if args.keep_memory:
        keep_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    values = MODELS[args.model].to_dict()
    values["num_classes"], values["decoder"]["queries"] = NUM_CLASSES, args.queries
    config = ModelConfig.from_dict(values)
    images, targets = make_batch(args.batch_size, args.image_size, seed=0)
    steps = {"setdet, bfloat16, channels-last": our_step(config, images, targets, denoising=args.denoising)}
    for bfloat16 in (False, True):
        for channels_last in (False, True):
            name = f"transformers, {'bfloat16' if bfloat16 else 'float32'}{', channels-last' if channels_last else ''}"
            steps[name] = their_step(
                config, images, targets, denoising=args.denoising, bfloat16=bfloat16, channels_last=channels_last
            )

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_index in range(args.rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            loss = step()
            if round_index >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - start)
            if not loss.isfinite():
                raise SystemExit(f"{name}: the loss is not finite.")

    rates = {name: args.batch_size / statistics.median(times) for name, times in seconds.items()}
    ours, *theirs = rates
    best = max(theirs, key=lambda name: rates[name])
    allocator = "jemalloc" if "jemalloc" in os.environ.get("LD_PRELOAD", "") else "the system's"
    allocator += " that keeps memory" if args.keep_memory else ""
    print(
        f"{args.model}, {args.image_size} px, batch {args.batch_size}, {args.queries} queries, {args.denoising} "
        f"denoising, {args.threads} threads, allocator: {allocator}, torch {torch.__version__}, {platform.machine()}"
    )
    print("\n| | images/s | beside the best of transformers |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.2f} | {rate / rates[best]:.2f}× |")
    low, middle, high = statistics.quantiles(
        [theirs / own for own, theirs in zip(seconds[ours], seconds[best], strict=True)], n=4
    )
    print(
        f"\nsetdet trains at {middle:.2f}× the rate of {best} "
        f"(middle half of {args.rounds} rounds: {low:.2f} to {high:.2f})."
    )
    if args.json:
        args.json.write_text(
            json.dumps({"settings": vars(args) | {"json": None}, "images_per_second": rates, "ratio": middle}, indent=1)
        )


if __name__ == "__main__":
    main()
