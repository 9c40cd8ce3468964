"""Run by test_train.py under torchrun: two processes train together, one of them now and then without boxes."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import setdet.training.run as run_module
from setdet.data.schema import Record
from setdet.models.variants import MODELS
from setdet.training.session import Session
from test_train import TINY, make_dataset, tiny


def main(folder: Path) -> None:
    MODELS["tiny"] = TINY
    rank = int(os.environ["RANK"])
    data = folder / "data" / str(rank)
    data.mkdir()
    dataset = make_dataset(data, train_count=8)
    without_boxes = [
        _without_boxes(record) if index else record for index, record in enumerate(dataset.splits["train"])
    ]
    dataset = replace(dataset, splits={**dataset.splits, "train": tuple(without_boxes)})

    sums = []
    original = Session.finish_epoch

    def remembered(self: Session) -> None:
        original(self)
        sums.append([float(parameter.double().sum()) for parameter in self.parts.model.parameters()])

    Session.finish_epoch = remembered  # type: ignore[method-assign]
    torch.set_num_threads(1)
    result = run_module.train(dataset, tiny(evaluate_every=2), out=folder / "run")
    report = {"steps": result.steps, "metrics": result.metrics, "weights": sums}
    (folder / f"rank-{rank}.json").write_text(json.dumps(report))


def _without_boxes(record: Record) -> Record:
    return replace(
        record,
        boxes_xyxy_px=np.zeros((0, 4), dtype=np.float32),
        labels=np.zeros(0, dtype=np.int64),
        crowd=np.zeros(0, dtype=np.bool_),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
