"""Self-attention of a decoder layer in training on a CPU: within groups of queries, and of all pairs under a mask.

    python benchmarks/query_groups.py --threads 1

Forward and backward in bfloat16, in turns; medians of the wall time. Both give the same: test_models.py says so.
"""

import argparse
import math
import statistics
import time

import torch
from torch import Tensor

from setdet.models.self_attention import QueryGroups, attend
from setdet.training.devices import keep_memory


def under_mask(query: Tensor, key: Tensor, value: Tensor, groups: QueryGroups) -> Tensor:
    bias = torch.zeros(groups.mask.shape, dtype=query.dtype).masked_fill_(~groups.mask, -math.inf)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3) + bias
    return scores.softmax(dim=-1) @ value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--chosen", type=int, default=100)
    parser.add_argument("--denoising", type=int, default=20, help="groups of denoising queries")
    parser.add_argument("--copies", type=int, default=10, help="denoising queries in a group")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=51)
    args = parser.parse_args()

    keep_memory()
    torch.set_num_threads(args.threads)
    total = args.denoising * args.copies + args.chosen
    groups = QueryGroups(
        denoising=args.denoising, copies=args.copies, chosen=args.chosen, total=total, device=torch.device("cpu")
    )
    # As the projections leave them: heads and channels of a query next to each other.
    projected = torch.randn(args.batch_size, total, 3, args.heads, 32, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(args.batch_size, args.heads, total, 32, dtype=torch.bfloat16)
    ways = {"under a mask": under_mask, "within groups": attend}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds + 1):
        for way, function in ways.items():
            began = time.perf_counter()
            function(*projected.permute(2, 0, 3, 1, 4).unbind(0), groups).backward(upstream)
            seconds[way].append(time.perf_counter() - began)
    medians = {way: statistics.median(times[1:]) for way, times in seconds.items()}  # the first warms up
    print(f"{vars(args)}, torch {torch.__version__}")
    print(", ".join(f"{way}: {value * 1e3:.1f} ms" for way, value in medians.items()))


if __name__ == "__main__":
    main()
