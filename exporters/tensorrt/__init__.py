"""TensorRT: engines from a portable ONNX graph, built and gated in processes of their own, and what proves that they use 2:4."""
