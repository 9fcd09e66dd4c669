"""The gate of an ONNX export: every path of the graph against the checkpoint that it was made from."""
