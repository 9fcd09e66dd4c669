"""What Triton's Python backend runs: copied into the model repository as it is, so it imports nothing of Trimline.

It needs numpy, onnxruntime (or onnxruntime-gpu) and tokenizers.
"""
