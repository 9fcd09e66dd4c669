#!/bin/sh
# Guess: the same tensors and the same metadata make the same file, byte for byte; keys stand in the order given, or sorted.
# Seen (safetensors 0.8.0): tensors are in a fixed order, metadata is not: with five keys nearly every call writes another
#   order, within one process too. With one key ({"format": "pt"}, what most tools write) the bytes are the same.
# For users of Trimline: a sum over a checkpoint to which a tool added metadata (merge tools, training scripts) differs after
#   every rewrite though no weight does. Compare tensors, or rewrite the header with sorted keys.
. "$(dirname "$0")/lib.sh"
packages safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import numpy as np
from safetensors.numpy import save
from seen import seen

tensors = {f"blocks.{number}.weight": np.ones((4, 4), np.float32) for number in range(8)}
one = {save(tensors, {"format": "pt"}) for _ in range(50)}
seen(len(one) == 1, "with one key of metadata 50 calls give one file")
keys = {"format": "pt", "method": "cfsp", "ratio": "0.3", "seed": "0", "base": "tiny"}
five = {save(tensors, keys) for _ in range(50)}
seen(len(five) > 10, f"with five keys 50 calls give {len(five)} different files")
seen(len({len(data) for data in five}) == 1, "they have the same length: only the order differs")
EOF
