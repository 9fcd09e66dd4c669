"""What a gate shows a vision-language model: random images with the tokens that stand for them, made for the class itself.

No processor is asked: it would need a package for images, and shapes are all that it would add.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.architecture.wrappers import ImageForm, Wrapper, text_name
from pipeline.common.errors import GateError, TrimlineError
from pipeline.evaluate.gates import compare_logits, gate_tokens
from pipeline.rebuild.readings import GateReading

IMAGES = ("an image", "another image")
MERGED_A_SIDE = 2  # tokens a side, of images that may be of any size
BEFORE, AFTER = 4, 12  # tokens of text around an image


@torch.inference_mode()
def image_readings(model: PreTrainedModel, wrapper: Wrapper, device: str) -> list[GateReading]:
    """Two readings of the same text around two images.

    Args:
        model: the whole model, as transformers loads it.
        wrapper: its description.
        device: where the tokens and the images go.

    Raises:
        TrimlineError: the class makes nothing of such an image.
    """
    try:
        return [_reading(model, wrapper, device, name, seed) for seed, name in enumerate(IMAGES)]
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # whatever the class meets in a config of its kind
        why = " ".join(str(error).split())[:200]
        raise TrimlineError(
            f"{wrapper.model_type} of transformers takes no image of the size that its config says ({why}).",
            "Correct vision_config in config.json, or fetch the checkpoint again.",
        ) from error


def demand_seen(logits: Mapping[str, torch.Tensor], what: str) -> None:
    """An image has to matter: else nothing was shown by comparing answers to one.

    Args:
        logits: (rows, positions, vocabulary) by the name of the reading.
        what: whose.

    Raises:
        GateError: two images give the same answer.
    """
    one, other = (logits[name] for name in IMAGES)
    if compare_logits(one, other).passed:
        raise GateError(f"{what} answers two images alike.", "Fetch the checkpoint again: its projector or its vision tower gives nothing.")


@torch.no_grad()
def sums_beside(model: nn.Module) -> dict[str, str]:
    """SHA-256 of every tensor of the whole model, in memory, that is not its language model's."""
    return {name: hashlib.sha256(_bytes(tensor)).hexdigest() for name, tensor in _beside(model)}


def demand_same_beside(dense: Mapping[str, str], rebuilt: Mapping[str, str]) -> None:
    """What is not the language model's is carried as it is.

    Raises:
        GateError: names the first tensor that is another, or is not there.
    """
    for name in sorted(dense.keys() | rebuilt.keys()):
        if dense.get(name) != rebuilt.get(name):
            raise GateError(
                f"The tensor {name} is not that of the dense model, and it is to be carried as it is.", "Rebuild the checkpoint."
            )


def _reading(model: PreTrainedModel, wrapper: Wrapper, device: str, name: str, seed: int) -> GateReading:
    config = model.config
    given = _image(config, wrapper, seed, device)
    body: Any = model.model
    features = body.get_image_features(**given, return_dict=True).pooler_output
    count = sum(len(one.reshape(-1, one.shape[-1])) for one in features)
    around = gate_tokens(int(config.get_text_config().vocab_size), 1, BEFORE + AFTER, 3).to(device)
    around[torch.isin(around, torch.tensor(_special(config), device=device))] = 0
    placeholders = around.new_full((1, count), int(config.image_token_id))
    tokens = torch.cat((around[:, :BEFORE], placeholders, around[:, BEFORE:]), dim=1)
    marks = {wrapper.marks: (tokens == int(config.image_token_id)).long()} if wrapper.marks else {}
    return GateReading(name, tokens, given=given | marks)


def _image(config: PretrainedConfig, wrapper: Wrapper, seed: int, device: str) -> dict[str, torch.Tensor]:
    """Arguments of the class for one image."""
    vision, generator = config.vision_config, torch.Generator().manual_seed(seed)
    channels = int(getattr(vision, "num_channels", None) or vision.in_channels)
    if wrapper.images is ImageForm.PATCHES:
        side = MERGED_A_SIDE * int(vision.spatial_merge_size)
        numbers = channels * int(vision.temporal_patch_size) * int(vision.patch_size) ** 2
        grid = torch.tensor([[1, side, side]], device=device)
        return {"pixel_values": torch.randn(side * side, numbers, generator=generator).to(device), "image_grid_thw": grid}
    height, width = (int(vision.image_size),) * 2 if isinstance(vision.image_size, int) else map(int, vision.image_size)
    sizes: dict[str, torch.Tensor] = {}
    if wrapper.images is ImageForm.SIZED:
        side = MERGED_A_SIDE * int(config.spatial_merge_size) * int(vision.patch_size)
        height, width = min(height, side), min(width, side)
        sizes = {"image_sizes": torch.tensor([[height, width]], device=device)}
    return {"pixel_values": torch.randn(1, channels, height, width, generator=generator).to(device)} | sizes


def _special(config: PretrainedConfig) -> list[int]:
    """Ids that may stand for something else than text."""
    return [value for key, value in vars(config).items() if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)]


def _beside(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in model.state_dict().items():
        if text_name(name) is None:
            yield name, tensor


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
