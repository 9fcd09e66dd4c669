"""Run by the Python of Optimum's environment: greedy tokens of an ONNX folder as a line of JSON.

``python optimum_client.py FOLDER TOKENS ID…``: the ids are the prompt.
"""

from __future__ import annotations

import json
import sys

import torch
from optimum.onnxruntime import ORTModelForCausalLM


def main(folder: str, tokens: int, prompt: list[int]) -> None:
    """Prints what follows the prompt."""
    model = ORTModelForCausalLM.from_pretrained(folder, use_io_binding=False)
    ids = torch.tensor([prompt])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    print(json.dumps(found[0, len(prompt) :].tolist()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [int(number) for number in sys.argv[3:]])
