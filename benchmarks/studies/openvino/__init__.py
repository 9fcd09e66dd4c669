"""OpenVINO beside ONNX Runtime on a processor."""
