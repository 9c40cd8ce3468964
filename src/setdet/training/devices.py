"""Where and in which precision training runs, and with how many processes (Lightning Fabric)."""

import ctypes
import logging
import os
import sys
from datetime import timedelta
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from setdet.errors import ConfigError
from setdet.training.config import TrainConfig

Precision = Literal["fp32", "bf16", "fp16"]

_FABRIC_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
# Rank 0 evaluates while the others wait for it; the default limits (10 to 30 minutes) are too short for that.
_PATIENCE = timedelta(hours=12)


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """The device to use.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("device=cuda: this torch sees no CUDA device. Use device=cpu, or install a CUDA build.")
    if wanted == "auto":
        return "cuda" if available else "cpu"
    return wanted


def choose_precision(wanted: Literal["auto", "fp32", "bf16", "fp16"], device: Literal["cpu", "cuda"]) -> Precision:
    """The precision of the forward pass.

    Raises:
        ConfigError: fp16 was asked for on a CPU.
    """
    if wanted == "fp16" and device == "cpu":
        raise ConfigError("precision=fp16 needs device=cuda; on a CPU use bf16 or fp32.")
    if wanted != "auto":
        return wanted
    # Emulated bfloat16 is several times slower than float32: ask for the hardware, not for mere support.
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "fp32"


def keep_memory() -> None:
    """Has glibc keep the memory that a step has freed for the next one; elsewhere it does nothing.

    Else every step's large tensors are pages that the system takes back, hands out and clears again: up to a seventh
    of a training step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # as malloc.h has them
        # Before 2.35 no more than 32 MiB was taken. Where neither is, keeping what is trimmed would only do harm.
        if mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25):
            mallopt(trim_threshold, 2**31 - 1)


def launch(config: TrainConfig) -> Fabric:
    """Fabric on the device of a resolved configuration; under `torchrun`, on this process's share of them."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the run itself says where and how it computes
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    fabric = Fabric(
        accelerator=config.device,
        devices=local,
        num_nodes=processes // local,
        # A batch without boxes gives the denoising embedding no gradient: let DDP look for such parameters.
        strategy=DDPStrategy(find_unused_parameters=True, timeout=_PATIENCE) if processes > 1 else "auto",
        precision=_FABRIC_PRECISION[config.precision],
    )
    fabric.launch()
    return fabric


def shut_down(fabric: Fabric) -> None:
    """Leaves the process group, if there is one, when all have come to the end.

    Not after a failure: who leaves alone may wait for the others, which wait for it in a collective call. They are
    ended by what has started them.
    """
    fabric.barrier()
    if fabric.world_size > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
