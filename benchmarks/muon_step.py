"""What a step of the optimiser costs, with Muon's rounds by small factors and with each round on the weight itself.

    python benchmarks/muon_step.py --threads 1

Both in turns; medians of the wall time. Gradients are noise: nothing about the time depends on them.
"""

import argparse
import statistics
import time

import torch

from setdet.models.rtdetr import build_model
from setdet.training import muon
from setdet.training.config import TrainConfig
from setdet.training.devices import keep_memory
from setdet.training.optim import build_optimizer, parameter_groups

# (1, 1, …) multiplies the weight in every round.
WAYS = {"each round on the weight": (1,) * sum(muon._ROUNDS), "by factors": muon._ROUNDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["rtdetr-n", "rtdetr-r18"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()

    keep_memory()
    torch.set_num_threads(args.threads)
    print(f"{args.threads} threads, bfloat16, torch {torch.__version__}, {args.rounds} rounds")
    for name in args.models:
        model = build_model(name, num_classes=6).to(memory_format=torch.channels_last)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3
        groups = {kind: parameter_groups(model, TrainConfig(optimizer=kind)) for kind in ("muon", "adamw")}
        optimizers = {kind: build_optimizer(made, precision="bf16") for kind, made in groups.items()}
        seconds: dict[str, list[float]] = {"AdamW": [], **{way: [] for way in WAYS}}
        for _ in range(args.rounds + 1):
            for way, times in seconds.items():
                muon._ROUNDS = WAYS.get(way, muon._ROUNDS)
                began = time.perf_counter()
                optimizers["adamw" if way == "AdamW" else "muon"].step()
                times.append(time.perf_counter() - began)
        medians = {way: statistics.median(times[1:]) for way, times in seconds.items()}  # the first makes the state
        print(name, ", ".join(f"{way}: {value * 1e3:.0f} ms" for way, value in medians.items()), sep=": ")


if __name__ == "__main__":
    main()
