#!/bin/sh
# Guess: `config.rope_theta = 5e5`, or `from_pretrained(folder, rope_theta=5e5)`, sets the rotary base of the model that is built: the key
#   is still an argument of the config's class.
# Seen (transformers 5.23.0): as an argument of the class it counts. Set later it is kept as an attribute that nothing reads; given to
#   from_pretrained it is dropped. Neither says so. Worse, the attribute is *written* into config.json beside `rope_parameters`, so that
#   the file names two bases: transformers 5 goes on with the old one, readers of the old key take the new one.
# For users of Trimline: recipes that raise the base before recovery on longer texts train with the old one. Set
#   `config.rope_parameters["rope_theta"]`.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import json
from pathlib import Path

from seen import seen
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16)
SIZES |= dict(num_attention_heads=4, num_key_value_heads=2)


def base(config: object) -> float:
    """Of the frequencies with which a model of that config is built: the second of eight is base to the power -1/8."""
    frequencies = AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq
    return round(float(frequencies[1]) ** -8, -3)


for family in ("llama", "qwen3", "mistral"):
    config = AutoConfig.for_model(family, **SIZES, rope_theta=1e6)
    seen(base(config) == 1e6, f"{family}: as an argument of the class, a million counts")
    config.save_pretrained(family)
    seen(base(AutoConfig.from_pretrained(family, rope_theta=5e5)) == 1e6, f"{family}: from_pretrained drops rope_theta=5e5")
    config.rope_theta = 5e5
    seen(base(config) == 1e6, f"{family}: the attribute set later changes nothing")
    config.save_pretrained(family)
    stored = json.loads((Path(family) / "config.json").read_text())
    both = (stored["rope_theta"], stored["rope_parameters"]["rope_theta"])
    seen(both == (5e5, 1e6), f"{family}: config.json then names both, {both}")
    seen(base(AutoConfig.from_pretrained(family)) == 1e6, f"{family}: and is read with the old one")
    config.rope_parameters["rope_theta"] = 5e5
    seen(base(config) == 5e5, f"{family}: set in rope_parameters it counts")
EOF
