"""What can be asked of an export, checked before anything is computed. No torch."""

from typing import Literal

from pydantic import Field

from setdet.config import Config
from setdet.errors import UsageError
from setdet.models.variants import ModelConfig

Sampling = Literal["grid", "gather", "discrete"]

# The operator set of the ONNX file. 20 is understood by every ONNX Runtime of the last years and by OpenVINO;
# TensorRT's parser has known all of 18 for longest, and 18 is the oldest that PyTorch's exporter writes.
OPSETS = {"generic": 20, "tensorrt": 18}


class ExportConfig(Config):
    """How a detector is exported."""

    format: Literal["onnx", "openvino", "pt2"]
    target: Literal["generic", "tensorrt"] = Field(
        default="generic", description="tensorrt: an ONNX file made for TensorRT's parser"
    )
    precision: Literal["fp32", "fp16", "bf16", "int8"] = Field(
        default="fp32",
        description="fp16, in ONNX: weights and arithmetic up to the encoder; fp16 and bf16, in OpenVINO: weights "
        "in fp16, and arithmetic where the device has it; int8, in OpenVINO: by calibration, where it does no harm",
    )
    sampling: Sampling | None = Field(
        default=None,
        description="grid: GridSample; gather: the same by plain gathers; discrete: the nearest cell alone, for models "
        "that were trained so; None: as the model and the target want it",
    )
    dynamic_size: bool = Field(default=False, description="any size in multiples of 32, not the network's own alone")
    pictures: bool = Field(default=False, description="resizing and scaling in the graph: uint8 pictures go in")
    detections: bool = Field(default=False, description="top-k in the graph: boxes in pixels come out")
    decoder_layers: int | None = Field(default=None, description="run only the first so many; None: as trained")
    queries: int | None = Field(default=None, description="select only the best so many; None: as trained")
    thresholds: dict[str, float] | None = Field(
        default=None, description="the lowest score to show of each class, for the file to carry; None: 0.5 for all"
    )
    calibration_pictures: int = Field(default=200, ge=1, description="how many pictures int8 is calibrated on, at most")

    def check(self, *, calibrated: bool) -> None:
        """Refuses what does not go together.

        Args:
            calibrated: whether there is a data set to calibrate on.

        Raises:
            UsageError: two of the choices contradict each other.
        """
        if self.target == "tensorrt" and self.format != "onnx":
            raise UsageError(f"--target tensorrt reads ONNX files: use --format onnx, not {self.format}.")
        if self.format == "onnx" and self.precision in ("bf16", "int8"):
            raise UsageError(
                f"--precision {self.precision} is for --format openvino: ONNX Runtime's CPU kernels have no bfloat16, "
                "and the calibration here is OpenVINO's. ONNX files are written in fp32 and fp16."
            )
        if self.format == "pt2" and (self.precision not in ("fp32", "bf16") or self.pictures or self.dynamic_size):
            raise UsageError(
                "--format pt2 is machine code for one size, in fp32 or bf16: leave out --inside resize and any-size, "
                "or use --format openvino."
            )
        if self.precision == "int8" and not calibrated:
            raise UsageError("--precision int8 needs --calibrate DATA: pictures like those it will see.")
        if calibrated and self.precision != "int8":
            raise UsageError("--calibrate is for --precision int8.")
        if self.pictures and self.dynamic_size:
            raise UsageError(
                "--inside resize brings every picture to the network's own size in the graph, so --inside any-size has "
                "nothing to change: leave out one of the two."
            )

    def sampling_for(self, model: ModelConfig) -> Sampling:
        """The sampling that was asked for, or that the model and the target want."""
        if self.sampling is not None:
            return self.sampling
        if model.decoder.sampling == "discrete":
            return "discrete"
        # OpenVINO is faster with it, and can be told to compute its positions in float32.
        return "gather" if self.target == "tensorrt" or self.format == "openvino" else "grid"
