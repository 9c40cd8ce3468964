"""The graph as an ONNX model: named nodes, dynamic batch, metadata, half precision where it does no harm."""

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator

import onnx
import torch

from setdet.export.graph import DetectionGraph
from setdet.runtime.exported import INPUTS, OUTPUTS, ExportInfo
from setdet.weights.info import METADATA_KEY

# Parts whose convolutions and matrix products are computed in reduced precision. Everything behind them (selection,
# reference boxes, sampling locations) decides positions: eleven bits for a coordinate are a third of a pixel at 640,
# and the selection's order changes with every rounding.
REDUCED = ("backbone", "encoder", "memory_proj")

_SCOPES = "pkg.torch.onnx.name_scopes"
_ROOT = "graph"
_NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def to_onnx(graph: DetectionGraph, *, info: ExportInfo, opset: int) -> onnx.ModelProto:
    """Exports in float32; `info` says which of its axes are dynamic and goes along as metadata.

    By PyTorch's exporter of captured programs. Of the same network, the older one, which records a run, leaves half as
    many nodes again (894 to 596 of `rtdetr-n`, both optimised): shapes that are computed although they are known.
    """
    height, width = info.checkpoint.preprocessing.image_size
    batch = torch.export.Dim("batch", min=1)
    # Two pictures, not one: an example of one makes the exporter take 1 for a constant.
    if info.input == "pictures":
        example = torch.zeros(2, height + 1, width + 2, 3, dtype=torch.uint8)
        dynamic = {0: batch, 1: torch.export.Dim("picture_height"), 2: torch.export.Dim("picture_width")}
    else:
        example = torch.zeros(2, 3, height, width)
        dynamic = {0: batch}
        if info.dynamic_size:
            least = info.least_side // 32
            example = torch.zeros(2, 3, max(height, info.least_side), max(width, info.least_side + 32))
            dynamic[2] = 32 * torch.export.Dim("rows", min=least, max=1024)
            dynamic[3] = 32 * torch.export.Dim("columns", min=least, max=1024)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=(dynamic,),
            input_names=[INPUTS[info.input]],
            output_names=list(OUTPUTS[info.output]),
            external_data=False,
            verbose=False,
        )
    assert program is not None  # it is, where no file is asked for
    model = program.model_proto
    _name_nodes(model)
    model.producer_name, model.producer_version = "setdet", info.setdet
    onnx.checker.check_model(model)
    return model


def describe(model: onnx.ModelProto, info: ExportInfo) -> None:
    """Writes `info` into the model's metadata, and the class names once more for readers that know no JSON."""
    onnx.helper.set_model_props(
        model,
        {METADATA_KEY: info.model_dump_json(), "class_names": "\n".join(info.checkpoint.class_names)},
    )


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with weights and arithmetic of `REDUCED` in float16; inputs, outputs and all the rest stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    seen = {model.graph.input[0].name}  # what depends on pixels; positions, from sizes alone, stay exact
    keep = []
    for node in model.graph.node:
        if node.op_type != "Shape" and not seen.isdisjoint(node.input):
            seen.update(node.output)
        if not is_reduced(node.name) or seen.isdisjoint(node.output):
            keep.append(node.name)
    with _quiet():
        return convert_float_to_float16(
            model,
            keep_io_types=True,
            disable_shape_infer=True,  # the exporter has inferred all of them
            node_block_list=keep,
            op_block_list=["Resize"],
        )


def is_reduced(name: str) -> bool:
    """Whether a node, by its name here and in OpenVINO, belongs to the parts of reduced precision."""
    return name.partition("/")[0].partition(".")[0] in REDUCED


def _name_nodes(model: onnx.ModelProto) -> None:
    """Names every node after the module that it comes from, as `decoder.layers.0.norm1/LayerNormalization`.

    So that parts can be kept in another precision by name, here, in OpenVINO and in TensorRT. A node that the
    exporter's optimiser made has lost its origin, and belongs to whoever reads its output.
    """
    readers: dict[str, str] = {}
    scopes = []
    for node in reversed(model.graph.node):
        scope = next((_scope(prop.value) for prop in node.metadata_props if prop.key == _SCOPES), "")
        scopes.append(scope or next((readers[name] for name in node.output if name in readers), _ROOT))
        for name in node.input:
            readers.setdefault(name, scopes[-1])
        del node.metadata_props[:]  # paths of this machine among them
    for value in model.graph.value_info:
        del value.metadata_props[:]
    counts: Counter[str] = Counter()
    for node, scope in zip(model.graph.node, reversed(scopes), strict=True):
        base = f"{scope}/{node.op_type}"
        counts[base] += 1
        node.name = base if counts[base] == 1 else f"{base}_{counts[base]}"


def _scope(text: str) -> str:
    """The innermost module in the exporter's "['', 'network.encoder', …, 'the operation']"."""
    modules = [part.strip(" '\"") for part in text.strip("[]").split(",")][:-1]
    return modules[-1].removeprefix("network.") if modules else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter's parts note about themselves."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
