"""The ONNX graph as OpenVINO's files."""

import io
import re
from pathlib import Path

import onnx
import openvino as ov

from setdet.export.sampling import POSITIONS
from setdet.runtime.exported import OPENVINO_FILE, ExportInfo
from setdet.weights.info import METADATA_KEY

# OpenVINO's own mark of a node that no reduced precision touches.
_EXACT = "precise_0"


def to_openvino(model: onnx.ModelProto) -> ov.Model:
    """Converts the ONNX graph, simplified: SiLU, for one, is an operation of its own, which quantisation does not cut.

    Not the PyTorch model itself: of `rtdetr-n` its conversion leaves 756 operations by a recorded run and 641 by a
    captured program, the ONNX graph 626 before and 560 after it was given its own attention; and so both formats are
    one graph, with the same names.
    """
    return ov.convert_model(io.BytesIO(model.SerializeToString()))


def write(model: ov.Model, folder: Path, *, info: ExportInfo) -> None:
    """Writes `model.xml` and `model.bin` into `folder`; weights take half the space where precision is reduced."""
    for node in model.get_ops():
        if POSITIONS in node.get_friendly_name():
            node.get_rt_info()[_EXACT] = ""
    model.set_rt_info(info.model_dump_json(), METADATA_KEY)
    # Readers of these split them at spaces, some at commas.
    labels = [re.sub(r"[\s,]", "_", name) for name in info.checkpoint.class_names]
    model.set_rt_info(labels, ["model_info", "labels"])
    ov.save_model(model, folder / OPENVINO_FILE, compress_to_fp16=info.precision != "fp32")
