"""The ONNX graph as OpenVINO's files."""

from pathlib import Path

import onnx
import openvino as ov

from setdet.runtime.exported import OPENVINO_FILE, ExportInfo
from setdet.weights.info import METADATA_KEY


def to_openvino(model: onnx.ModelProto) -> ov.Model:
    """Reads the ONNX graph.

    Not the PyTorch model itself: of `rtdetr-n` its conversion leaves 756 operations by a recorded run and 641 by a
    captured program, the ONNX graph 626 before and 560 after it was given its own attention; and so both formats are
    one graph, with the same names.
    """
    return ov.Core().read_model(model.SerializeToString())


def write(model: ov.Model, folder: Path, *, info: ExportInfo) -> None:
    """Writes `model.xml` and `model.bin` into `folder`; weights take half the space where precision is reduced."""
    model.set_rt_info(info.model_dump_json(), METADATA_KEY)
    model.set_rt_info(list(info.checkpoint.class_names), ["model_info", "labels"])
    ov.save_model(model, folder / OPENVINO_FILE, compress_to_fp16=info.precision != "fp32")
