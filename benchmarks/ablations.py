"""What each part of the encoder and each decoder layer costs: writes benchmarks/ablations.md.

    python benchmarks/ablations.py --rounds 30

Every row is one model with random weights (nothing about the time depends on them), run as `setdet predict` runs it:
folded, channels last, one picture at a time. Rounds are interleaved: each runs every row once, so a disturbance of the
machine touches all rows alike. Times are medians; the ratio is the median over rounds of a row's time to that of the
paper's model in the same round.
"""

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from setdet.models.deploy import fold
from setdet.models.rtdetr import build_model
from setdet.models.variants import MODELS, ModelConfig
from setdet.runtime.torch import TorchRuntime

# The paper's table 3: AP after 12 epochs on COCO and ms on a T4 GPU, both with R50.
PAPER = {
    "A": "43.0 / 7.2",
    "B": "44.9 / 11.1",
    "C": "45.6 / 13.3",
    "D": "46.4 / 12.2",
    "D_S5": "46.8 / 7.9",
    "E": "47.9 / 9.3",
}
ENCODERS = {
    "A": "projections alone",
    "B": "attention inside each level",
    "C": "attention over all levels together",
    "D": "attention inside each level, then plain fusion",
    "D_S5": "attention inside S5, then plain fusion",
    "E": "AIFI and CCFF: RT-DETR",
}
INTERACTIONS = {
    "none": "nothing inside S5",
    "aifi": "attention: RT-DETR",
    "cross": "convolutions and attention that look at each other",
}
SAMPLING = {"bilinear": "four nearest cells: RT-DETR", "discrete": "one cell: RT-DETRv2's -dsp"}


@dataclass
class Row:
    """One line of the table."""

    section: str
    title: str
    note: str
    config: ModelConfig
    decoder_layers: int


def rows_of(model: str) -> Iterator[Row]:
    config = MODELS[model]
    layers = config.decoder.eval_layers or config.decoder.layers
    for variant, title in ENCODERS.items():
        changed = config.override([f"encoder.variant={variant}"])
        yield Row("Encoder", f"{variant}: {title}", PAPER[variant], changed, layers)
    for interaction, title in INTERACTIONS.items():
        changed = config.override([f"encoder.interaction={interaction}"])
        yield Row("Inside S5", f"{interaction}: {title}", "", changed, layers)
    for count in range(config.decoder.layers, 0, -1):
        yield Row("Decoder layers run", str(count), "", config, count)
    for sampling, title in SAMPLING.items():
        yield Row("Sampling", f"{sampling}: {title}", "", config.override([f"decoder.sampling={sampling}"]), layers)


def count(row: Row, image_size: int) -> tuple[int, float]:
    """Parameters and GFLOPs of the folded copy."""
    with torch.device("meta"):
        folded = fold(build_model(row.config), decoder_layers=row.decoder_layers)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        folded(torch.empty(1, 3, image_size, image_size, device="meta"))
    return sum(parameter.numel() for parameter in folded.parameters()), counter.get_total_flops() / 1e9


def measure(rows: list[Row], image_size: int, *, precision: str, rounds: int) -> list[list[float]]:
    """Milliseconds of every row in every round."""
    engines = [
        TorchRuntime(model=build_model(row.config), precision=precision, decoder_layers=row.decoder_layers)
        for row in rows
    ]
    picture = np.random.default_rng(0).integers(0, 256, (1, image_size, image_size, 3), dtype=np.uint8)
    times: list[list[float]] = [[] for _ in rows]
    for round_index in range(rounds + 2):  # the first two warm up
        for engine, measured in zip(engines, times, strict=True):
            start = time.perf_counter()
            engine(picture)
            if round_index >= 2:
                measured.append(1000 * (time.perf_counter() - start))
    return times


def table(model: str, image_size: int, *, precision: str, rounds: int) -> str:
    rows = list(rows_of(model))
    times = measure(rows, image_size, precision=precision, rounds=rounds)
    paper = next(index for index, row in enumerate(rows) if row.title.startswith("E:"))
    lines = [f"## {model}, {image_size} px"]
    section = ""
    for row, measured in zip(rows, times, strict=True):
        if row.section != section:
            section = row.section
            noted = section == "Encoder"
            lines.append(
                f"\n| {section} | parameters | GFLOPs | ms | ratio |{' paper: AP / ms |' if noted else ''}\n"
                f"|---|---|---|---|---|{'---|' if noted else ''}"
            )
        parameters, gflops = count(row, image_size)
        typical = statistics.median(measured)
        ratio = statistics.median(own / whole for own, whole in zip(measured, times[paper], strict=True))
        lines.append(
            f"| {row.title} | {parameters / 1e6:.2f} M | {gflops:.2f} | {typical:.1f} | {ratio:.2f} |"
            + (f" {row.note} |" if row.note else "")
        )
    return "\n".join(lines)


def processor() -> str:
    """What the machine calls its processor."""
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["rtdetr-r18:640", "rtdetr-n:224"], metavar="MODEL:SIZE")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tables = []
    for wish in args.models:
        model, _, size = wish.partition(":")
        tables.append(table(model, int(size or 640), precision=args.precision, rounds=args.rounds))
    command = (
        f"python benchmarks/ablations.py --models {' '.join(args.models)} --precision {args.precision} "
        f"--threads {args.threads} --rounds {args.rounds}"
    )
    today = datetime.date.today().isoformat()
    text = f"""# What each part costs

The paper's ablations as `setdet` builds them ([docs/model.md](../docs/model.md#ablations)): parameters and operations
of the folded copy (two a multiply-add, in convolutions and matrix products), and the time of one picture.

{args.precision}, threads: {args.threads}, {processor()}, torch {torch.__version__}, {today};
medians of {args.rounds} interleaved rounds.

The ratio is to the time of variant E in the same round. RT-DETR as it is stands in every table, measured each time
anew: how far its ratios lie from 1 is the noise. Beside the encoders stand the paper's own figures for R50: AP after 12
epochs, ms on a T4. Written by

```sh
{command}
```

"""
    args.out.write_text(text + "\n\n".join(tables) + "\n", encoding="utf-8")
    print(args.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
