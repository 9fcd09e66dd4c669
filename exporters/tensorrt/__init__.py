"""TensorRT: engines from a portable ONNX graph, built in a process of their own, and what proves that they use 2:4."""
