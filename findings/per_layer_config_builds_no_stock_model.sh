#!/bin/sh
# Guess: `per_layer_config`, which transformers documents for every config ("overrides of attributes by layer"), makes an ordinary
#   decoder whose blocks have FFNs of different widths: the loader at last for unevenly pruned checkpoints.
# Seen (transformers 5.23.0): the config takes it, writes it and reads it, and gives each layer's own sizes; but the stock classes
#   (Llama, Qwen2, Qwen3, Mistral, Gemma 2, OLMo 2) ask the whole config for `intermediate_size` and end in an error. With
#   the switch that the error names, they build every block with the *global* width; a general warning is logged once.
# For users of Trimline: uneven folders still need the modelling file that is shipped with them, or the profile that a server reads.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import transformers
from seen import seen

sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
for family in ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma2", "Olmo2"):
    config = getattr(transformers, f"{family}Config")(**sizes, **ids, per_layer_config={0: {"intermediate_size": 48}, 2: {"intermediate_size": 80}})
    config.save_pretrained(family)
    config = transformers.AutoConfig.from_pretrained(family)
    widths = [layer.intermediate_size for layer in config.per_layer_config]
    seen(widths == [48, 96, 80], f"{family}: the config keeps {widths}")
    try:
        transformers.AutoModelForCausalLM.from_config(config)
        error = ""
    except RuntimeError as raised:
        error = type(raised).__name__
    seen(error == "AmbiguousGlobalPerLayerAttributeError", f"{family}: the model is not built ({error})")
    config.allow_global_per_layer_attribute_access = True
    model = transformers.AutoModelForCausalLM.from_config(config)
    built = [block.mlp.down_proj.weight.shape[1] for block in model.model.layers]
    seen(built == [96, 96, 96], f"{family}: with global access allowed its blocks have {built}")
EOF
