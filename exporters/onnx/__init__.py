"""ONNX: two lowerings of a checkpoint, the session that runs them, and their gate."""
