"""File names of an OpenVINO folder, as openvino-genai, OpenVINO Model Server and optimum-intel look for them."""

from __future__ import annotations

MODEL, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
TOKENIZER, DETOKENIZER = "openvino_tokenizer.xml", "openvino_detokenizer.xml"
FORMAT = "openvino"  # as export.json says it
