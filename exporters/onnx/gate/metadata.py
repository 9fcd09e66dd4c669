"""What a folder says beside its graph, as its readers take it, against what the checkpoint says, as transformers takes that.

onnxruntime-genai stops, samples and ends by genai_config.json; transformers' tokenizer and generation settings come from the folder
too. No number here comes from the code that wrote these files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig

from exporters.folder import GENAI_CONFIG
from exporters.onnx.files import GRAPH, PAST
from exporters.onnx.sparsity import load_graph
from exporters.positions import promised
from exporters.text.tokens import has_tokenizer
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.files import read_json
from pipeline.evaluate.gates import REPORT
from pipeline.evaluate.settings import GENERATION, demand_same_generation
from pipeline.evaluate.tokenizers import demand_alike, makes_tokens
from pipeline.live.loading import as_trimline_error, load_tokenizer, quiet_transformers, trusts

SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")


@dataclass(frozen=True)
class Metadata:
    """What was compared.

    Attributes:
        settings, tokens: how many.
        ends: ids that end a text, as transformers has them.
        padding: ids that a runtime may take for padding.
        search: of onnxruntime-genai's settings, what the checkpoint says.
        config: the checkpoint's, as transformers has it.
    """

    settings: int
    tokens: int
    ends: tuple[int, ...]
    padding: tuple[int, ...]
    search: dict[str, Any]
    config: PretrainedConfig

    def as_record(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {"settings": self.settings, "tokens": self.tokens, "ends": list(self.ends)}

    def check_genai(self, found: Mapping[str, Any], folder: Path) -> None:
        """What onnxruntime-genai itself read.

        Raises:
            GateError: it ends or samples by other numbers.
        """
        expected = self.search | ({} if found["ends"] is None else {"ends": list(self.ends)})
        for key, value in expected.items():
            if found[key] != value and not isclose(found[key], value, rel_tol=1e-6):  # it keeps floats in 32 bits
                raise GateError(f"onnxruntime-genai reads {key} = {found[key]} from {folder}, and the checkpoint says {value}.", REPORT)


def check_metadata(source: Checkpoint, folder: Path, lowering: str, trust_remote_code: bool) -> Metadata:
    """Compares what stands beside the graph with the checkpoint.

    Raises:
        GateError: a setting, a token or a template is another one, or a file was left out; which, is said.
    """
    with quiet_transformers(), as_trimline_error(source.folder):
        trust = trusts(source.folder, source.stated, trust_remote_code)
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust, local_files_only=True).get_text_config()
    generation = _generation(source.folder)
    expected = _expected(config, generation, folder, lowering, source.geometry.vocab)
    _same_settings(folder, expected)
    demand_same_generation(source.folder, folder)
    tokens = _same_tokenizer(source.folder, folder, trust_remote_code) if has_tokenizer(source.folder) else 0
    ends = ends_of(config, generation)
    pads = (getattr(one, "pad_token_id", None) for one in (config, generation))
    padding = sorted({0, *ends, *(pad for pad in pads if isinstance(pad, int))} & set(range(source.geometry.vocab)))
    search = {place[1]: value for place, value in expected.items() if place[0] == "search" and value is not None}
    return Metadata(len(expected), tokens, tuple(ends), tuple(padding[:4]), search, config)


def ends_of(config: PretrainedConfig, generation: GenerationConfig | None) -> list[int]:
    """Ids that end a text: those of the generation settings, which transformers prefers, else of the config."""
    stated = None if generation is None else generation.eos_token_id
    stated = getattr(config, "eos_token_id", None) if stated is None else stated
    return [] if stated is None else list(stated) if isinstance(stated, list | tuple) else [int(stated)]


def _generation(folder: Path) -> GenerationConfig | None:
    if not (folder / GENERATION).is_file():
        return None
    with quiet_transformers(), as_trimline_error(folder):
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


def _expected(
    config: PretrainedConfig, generation: GenerationConfig | None, folder: Path, lowering: str, vocabulary: int
) -> dict[tuple[str, ...], Any]:
    """Values by their place in genai_config.json; None where the place must be empty."""
    groups = [
        value.type.tensor_type.shape.dim[1].dim_value for value in load_graph(folder / GRAPH).graph.input if value.name.startswith(PAST)
    ]
    positions = promised(int(config.max_position_embeddings))
    rotary = getattr(config, "rope_parameters", None) or {}
    if lowering == "fused" and rotary.get("rope_type") == "longrope":  # beyond, it turns other angles
        positions = min(positions, int(rotary["original_max_position_embeddings"]))
    start = None if generation is None else generation.bos_token_id
    found: dict[tuple[str, ...], Any] = {
        ("model", "context_length"): positions,
        ("search", "max_length"): positions,
        ("model", "vocab_size"): vocabulary,
        ("model", "bos_token_id"): getattr(config, "bos_token_id", None) if start is None else start,
        ("model", "decoder", "num_hidden_layers"): config.num_hidden_layers,
        ("model", "decoder", "num_key_value_heads"): max(groups),
        ("model", "decoder", "hidden_size"): config.hidden_size,
        ("search", "do_sample"): False,
        ("search", "num_beams"): 1,
    }
    if (heads := getattr(config, "num_attention_heads", None)) and getattr(config, "num_key_value_heads", None) == max(groups):
        found["model", "decoder", "num_attention_heads"] = heads
    if head_dim := getattr(config, "head_dim", None):
        found["model", "decoder", "head_size"] = head_dim
    return (
        found
        | {("search", key): getattr(generation, key, None) for key in SAMPLING}
        | {("model", "eos_token_id"): ends_of(config, generation)}
    )


def _same_settings(folder: Path, expected: Mapping[tuple[str, ...], Any]) -> None:
    path = folder / GENAI_CONFIG
    if not path.is_file():
        raise GateError(f"{folder} has no {GENAI_CONFIG}, by which onnxruntime-genai opens it.", REPORT)
    stated = read_json(path)
    for place, value in expected.items():
        found: Any = stated
        for key in place:
            found = found.get(key) if isinstance(found, dict) else None
        if place[-1] == "eos_token_id":
            found = [] if found is None else found if isinstance(found, list) else [found]
        if found != value:
            raise GateError(f"{path} says {'.'.join(place)} = {found}, and the checkpoint {value}.", REPORT)


def _same_tokenizer(checkpoint: Path, folder: Path, trust_remote_code: bool) -> int:
    """How many tokens both have, where transformers makes the same of both."""
    if not has_tokenizer(folder):
        raise GateError(f"{folder} has no tokenizer, and the checkpoint has one.", REPORT)
    theirs = load_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    if not makes_tokens(theirs):
        return 0
    try:
        # A folder of blocks that differ has no config.json, which transformers need not have for a tokenizer.
        with quiet_transformers(), as_trimline_error(folder):
            ours = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except TrimlineError as error:
        raise GateError(f"The tokenizer of {checkpoint} opens, and that in {folder} does not: {error.problem}", REPORT) from None
    demand_alike(theirs, ours, str(folder))
    return len(theirs)
