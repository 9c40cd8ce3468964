"""Detectors for other runtimes: ONNX and OpenVINO files, and the gate that each has to pass."""
