"""How fast the models run on two cores, beside `transformers`' in the same rounds: writes benchmarks/latency.md.

    python benchmarks/latency.py --threads 2 --rounds 25 --data NEU-DET

Weights are random but for the table of layers and queries, where `rtdetr-n/neu-det` is measured. Random weights are
quantised whole: which parts int8 would harm depends on training (docs/export.md has that of trained ones).
"""

import argparse
import contextlib
import datetime
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import setdet
from setdet.benchmark.measure import Candidate, Comparison, compare
from setdet.benchmark.peers import transformers_peers
from setdet.benchmark.timing import machine, model_alone, pictures_per_second, take_turns
from setdet.benchmark.ways import Way, ways, write
from setdet.data.surfaces import generate, make
from setdet.export import int8
from setdet.images import Preprocessing
from setdet.models.rtdetr import RTDETR, build_model
from setdet.runtime.openvino import openvino_core
from setdet.weights.catalog import resolve
from setdet.weights.classes import default_class_names
from setdet.weights.files import CheckpointInfo, load_model, save_checkpoint

_TRAINED = "The model was trained with three layers and 100 queries; 300 are more than training ever asked for."
_UNITS = ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
RUNTIMES = ("openvino:bf16", "openvino:int8", "onnx:fp32", "torch:bf16", "pt2:bf16")


def main() -> None:
    """Measures everything, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--data", type=Path, required=True, help="NEU-DET")
    parser.add_argument("--files", type=Path, help="a folder that keeps the exported files for another time")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = [_head(args)]
    with tempfile.TemporaryDirectory() as scratch, _quantised_whole():
        bench = Bench(args.files or Path(scratch), args.threads, args.rounds)
        parts += [bench.networks(), bench.profile(), bench.files(), bench.knobs(args.data)]
    args.out.write_text("\n".join(parts), encoding="utf-8")


class Bench:
    """One measurement a method, each a part of the page."""

    def __init__(self, scratch: Path, threads: int, rounds: int) -> None:
        self.scratch, self.threads, self.rounds = scratch, threads, rounds
        self.steel = scratch / "steel"
        if not self.steel.is_dir():
            make(self.steel, count=40, seed=5)
        self.small = _jpeg(scratch / "small", width=640, height=480)
        self.large = _jpeg(scratch / "large", width=1920, height=1080)
        self.largest = _jpeg(scratch / "largest", width=1920, height=1080, tiles=2)

    def networks(self) -> str:
        """The models alone, in every engine, beside `transformers`'."""
        lines = ["| | ms | 95 % | beside `transformers` through OpenVINO, bfloat16 |", "| --- | --- | --- | --- |"]
        for name in ("rtdetr-r18", "rtdetr-r50", "rtdetr-hgnetv2-l"):
            info, model = _random(name, 640)
            runners: dict[str, Callable[[], object]] = {}
            for precision in ("bf16", "fp32"):  # the first is what the others are compared with
                peers = transformers_peers(info, model, precision=precision, threads=self.threads)
                runners |= {f"{name}, {key}": run for key, run in peers.items() if "OpenVINO" in key}
            for one in self._candidates(name, info, model, RUNTIMES):
                runners[one.name] = model_alone(one.open("latency"))
            lines += [
                f"| `{one.name}` | {one.median_ms:.1f} | {one.p95_ms:.1f} | {one.ratio:.2f}× |"
                for one in take_turns(runners, rounds=self.rounds)
            ]
        return "\n".join(["## The network alone, 640 × 640\n", *lines, ""])

    def profile(self) -> str:
        """What `rtdetr-r18` spends its time on in OpenVINO, by kind of operation."""
        info, model = _random("rtdetr-r18", 640)
        picture = np.random.default_rng(0).random((1, 3, 640, 640), dtype=np.float32)
        shares: dict[str, dict[str, float]] = {}
        for candidate in self._candidates("rtdetr-r18", info, model, ("openvino:bf16", "openvino:int8")):
            engine = candidate.open("latency").runtime.engine  # type: ignore[attr-defined]
            request = openvino_core().compile_model(engine.model, "CPU", {**engine.config, "PERF_COUNT": True})
            times: dict[str, float] = defaultdict(float)
            for number in range(self.rounds + 2):
                found = request.create_infer_request()
                found.infer([picture])
                for node in found.profiling_info if number >= 2 else ():
                    times[node.node_type] += node.real_time.total_seconds()
            total = sum(times.values())
            shares[candidate.name] = {kind: seconds / total for kind, seconds in times.items()}
        kinds = sorted(
            {kind for one in shares.values() for kind in one},
            key=lambda kind: -max(one.get(kind, 0) for one in shares.values()),
        )
        lines = ["| | " + " | ".join(f"`{name}`" for name in shares) + " |", "| --- |" + " --- |" * len(shares)]
        for kind in kinds[:8]:
            lines.append(f"| {kind} | " + " | ".join(f"{one.get(kind, 0):.1%}" for one in shares.values()) + " |")
        rest = [sum(one.get(kind, 0) for kind in kinds[8:]) for one in shares.values()]
        lines.append("| all other kinds | " + " | ".join(f"{share:.1%}" for share in rest) + " |")
        return "\n".join(["## What the time goes to, 640 × 640\n", *lines, ""])

    def files(self) -> str:
        """From files to boxes; the rest beside the network is all but decoding."""
        lines = [
            "| | picture | network alone | decode | prepare | the rest beside the network | streamed, of the alone |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, side, runtime, pictures, size, reduced in (
            ("rtdetr-n", 320, "openvino:bf16", self.small, "640 × 480", False),
            ("rtdetr-n", 320, "openvino:int8", self.small, "640 × 480", False),
            ("rtdetr-r18", 640, "openvino:bf16", self.large, "1920 × 1080", False),
            ("rtdetr-r18", 640, "openvino:int8", self.large, "1920 × 1080", False),
            ("rtdetr-r18", 640, "openvino:int8", self.largest, "3840 × 2160", False),
            ("rtdetr-r18", 640, "openvino:int8", self.largest, "3840 × 2160", True),
        ):
            info, model = _random(name, side)
            (candidate,) = self._candidates(name, info, model, [runtime], reduced_decoding=reduced)
            one = self._compare([candidate], pictures, {}).measured[candidate.name]
            around = one.stages.whole - one.stages.decode - one.alone.median_ms
            alone = 1000 / one.alone.median_ms
            streamed = pictures_per_second(candidate.open("throughput"), pictures, count=400 if side == 320 else 100)
            how = f"{size}, `--reduced-decoding`" if reduced else size
            lines.append(
                f"| `{candidate.name}`, {side} | {how} | {one.alone.median_ms:.1f} ms, {alone:.1f}/s | "
                f"{one.stages.decode:.1f} ms | {one.stages.prepare:.1f} ms | {around / one.alone.median_ms:.1%} | "
                f"{streamed:.1f}/s, {streamed / alone:.0%} |"
            )
        return "\n".join(["## From JPEG files to boxes\n", *lines, ""])

    def knobs(self, data: Path) -> str:
        """Decoder layers and queries of trained weights."""
        info, trained = load_model(resolve("rtdetr-n/neu-det"))
        # It was trained to select 100; selection has no weights, so it can be had select more.
        decoder = info.model.decoder.model_copy(update={"queries": 300})
        info = info.model_copy(update={"model": info.model.model_copy(update={"decoder": decoder})})
        model = build_model(info.model).eval()
        model.load_state_dict(trained.state_dict())
        chosen = ways(["openvino:bf16"], decoder_layers=[1, 2, 3], queries=[50, 100, 300])
        candidates = list(self._of(chosen, "rtdetr-n/neu-det", info, model))
        compared = self._compare(candidates, self.small, {}, accuracy=partial(_ap, data=data))
        lines = ["| layers | 50 queries | 100 queries | 300 queries |", "| --- | --- | --- | --- |"]
        for layers in (1, 2, 3):
            cells = [
                f"{one.ap:.4f}, {one.alone.median_ms:.1f} ms"
                for one, way in zip(compared.measured.values(), chosen, strict=True)
                if way.decoder_layers == layers
            ]
            lines.append(f"| {layers} | " + " | ".join(cells) + " |")
        height, width = info.preprocessing.image_size
        title = f"## Layers and queries: AP on NEU-DET, `rtdetr-n/neu-det`, bfloat16, {height} × {width}\n"
        return "\n".join([title, *lines, "", _TRAINED, ""])

    def _candidates(
        self, name: str, info: CheckpointInfo, model: RTDETR, runtimes: Sequence[str], **more: Any
    ) -> Iterator[Candidate]:
        yield from self._of(ways(runtimes, decoder_layers=[None], queries=[None]), name, info, model, **more)

    def _of(
        self, chosen: Sequence[Way], name: str, info: CheckpointInfo, model: RTDETR, **more: Any
    ) -> Iterator[Candidate]:
        for way in chosen:
            folder = self.scratch / f"{name} {way} {info.preprocessing.image_size}".replace("/", " ").replace(":", " ")
            options: dict[str, Any] = {"threads": self.threads, **more}
            path = folder / {"torch": "model.safetensors", "openvino": "model"}.get(way.engine, f"model.{way.engine}")
            if way.engine == "torch":
                options["precision"] = way.precision
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                if way.engine == "torch":
                    save_checkpoint(path, state=model.state_dict(), info=info)
                else:
                    write(way, info, model, folder, calibration=self.steel, say=print)
            yield Candidate(name=f"{name}, {way}", line=way.line, open=partial(_open, path, options))

    def _compare(
        self, candidates: list[Candidate], pictures: list[Path], peers: dict[str, Any], accuracy: Any = None
    ) -> Comparison:
        return compare(candidates, pictures, rounds=self.rounds, peers=peers, accuracy=accuracy, settings={}, say=print)


def _open(path: Path, options: dict[str, Any], hint: Any) -> Any:
    extra = {"hint": hint} if path.is_dir() else {}
    return setdet.load(path, **options, **extra).predictor


def _ap(predictor: Any, data: Path) -> float | None:
    from setdet.api import read_with_split
    from setdet.evaluate import evaluate

    dataset = read_with_split(data, "val")
    return evaluate(predictor, dataset.splits["val"], class_names=dataset.class_names).ap


def _random(name: str, side: int) -> tuple[CheckpointInfo, RTDETR]:
    torch.manual_seed(0)
    model = build_model(name).eval()
    return CheckpointInfo(
        model=model.config,
        class_names=default_class_names(model.config.num_classes),
        preprocessing=Preprocessing(image_size=(side, side)),
        history={},
    ), model


def _jpeg(folder: Path, *, width: int, height: int, tiles: int = 1) -> list[Path]:
    if folder.is_dir():
        return sorted(folder.iterdir())
    folder.mkdir()
    for index in range(8):
        picture = np.tile(generate(index, seed=0, size=width).image[:height], (tiles, tiles, 1))
        cv2.imwrite(str(folder / f"{index}.jpg"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return sorted(folder.iterdir())


@contextlib.contextmanager
def _quantised_whole() -> Iterator[None]:
    allowed, int8._ALLOWED = int8._ALLOWED, math.inf
    try:
        yield
    finally:
        int8._ALLOWED = allowed


def _head(args: argparse.Namespace) -> str:
    here = machine()
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    units = ", ".join(unit for unit in _UNITS if unit in flags) or "none of them"
    return f"""# Latency

    python benchmarks/latency.py --threads {args.threads} --rounds {args.rounds} --data NEU-DET

{datetime.date.today():%B %Y}; {here["processor"]}, {here["cores"]} cores, threads: {args.threads}; units for low
precision, of {", ".join(_UNITS)}: {units}.
Versions: {versions}.

Medians of {args.rounds} rounds in which all rows of a model take turns, batch 1. The ratios are medians of the ratios
within a round to `transformers`' model as its user would run it: `ov.convert_model`, a static shape, the latency hint,
bfloat16, the same threads. Weights are random (quantised whole for int8), but for the table of layers and queries.
"""


if __name__ == "__main__":
    main()
