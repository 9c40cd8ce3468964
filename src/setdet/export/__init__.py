"""Detectors for other runtimes: ONNX, OpenVINO and compiled files, and the gate that each has to pass."""
