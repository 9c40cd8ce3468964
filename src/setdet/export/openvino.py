"""The ONNX graph as OpenVINO's files, and in eight bits."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
from numpy.typing import NDArray

from setdet.export.onnx import REDUCED
from setdet.runtime.exported import OPENVINO_FILE, ExportInfo
from setdet.weights.info import METADATA_KEY


def to_openvino(model: onnx.ModelProto) -> ov.Model:
    """Reads the ONNX graph.

    Not the PyTorch model itself: of `rtdetr-n` its conversion leaves 756 operations by a recorded run and 641 by a
    captured program, the ONNX graph 626 before and 560 after it was given its own attention; and so both formats are
    one graph, with the same names.
    """
    return ov.Core().read_model(model.SerializeToString())


def to_int8(model: ov.Model, pictures: Sequence[NDArray[Any]]) -> ov.Model:
    """Convolutions and matrix products of `REDUCED` in eight bits, calibrated on inputs of the graph, one picture each.

    Selection, decoder and heads stay as they are: they decide positions and the order of scores, and are the parts
    that lose most for the least gained.
    """
    # NNCF reports its use to its makers, unless it believes that it is being tested.
    os.environ.setdefault("NNCF_CI", "1")
    with _quiet():
        import nncf

        nncf.set_log_level(logging.ERROR)
        return nncf.quantize(
            model,
            nncf.Dataset(list(pictures)),
            preset=nncf.QuantizationPreset.MIXED,  # symmetric weights, asymmetric activations: SiLU is lopsided
            subset_size=len(pictures),
            ignored_scope=nncf.IgnoredScope(patterns=[f"^(?!({'|'.join(REDUCED)})[./]).*"], validate=False),
        )


def write(model: ov.Model, folder: Path, *, info: ExportInfo) -> None:
    """Writes `model.xml` and `model.bin` into `folder`; weights take half the space where precision is reduced."""
    model.set_rt_info(info.model_dump_json(), METADATA_KEY)
    model.set_rt_info(list(info.checkpoint.class_names), ["model_info", "labels"])
    ov.save_model(model, folder / OPENVINO_FILE, compress_to_fp16=info.precision != "fp32")


def calibration_input(picture: NDArray[np.uint8], info: ExportInfo) -> NDArray[Any]:
    """A picture of the network's size (height, width, 3) as the graph's input, a batch of one."""
    if info.input == "pictures":
        return picture[None]
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


@contextlib.contextmanager
def _quiet() -> Any:
    """NNCF's progress goes to the standard error; the standard output is for results."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield
