"""Running a graph: the session, where it runs, its buffers, onnxruntime-genai's folder."""
