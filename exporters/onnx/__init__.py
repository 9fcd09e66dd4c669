"""exporters/onnx."""
