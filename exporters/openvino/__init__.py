"""OpenVINO: a checkpoint into its own graph with a state for the cache, compressed by nncf, gated in openvino and in openvino-genai."""
