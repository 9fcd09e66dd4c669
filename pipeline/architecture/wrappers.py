"""Models with a language model inside, among towers for images, described as data; and what its tensors are called there.

A folder of such a model nests the language model's config in ``text_config`` and puts a prefix before the names of its tensors.
Everything here and above that cuts, measures or counts takes the language model as a model of its own, by the names of its own class:

| | block's tensor | head |
|---|---|---|
| its own class | ``model.layers.0…`` | ``lm_head.weight`` |
| the whole class, in memory and in some folders | ``model.language_model.layers.0…`` | ``lm_head.weight`` |
| what transformers writes for most types | ``language_model.model.layers.0…`` | ``language_model.lm_head.weight`` |

What has none of these names belongs to the towers and projectors: it is carried as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

BODY, HEAD = "model.", "lm_head."
WITHIN_BODY, BEFORE_ALL = "model.language_model.", "language_model."
# For transformers' loader: names of files, as regular expressions, to names of the language model's own class.
KEY_MAPPING = {r"^language_model\.": "", r"^model\.language_model\.": BODY}


class ImageForm(StrEnum):
    """How the whole class is given an image."""

    SQUARE = "square"  # pixel_values (images, channels, height, width)
    SIZED = "sized"  # the same, and image_sizes (images, 2) in pixels
    PATCHES = "patches"  # pixel_values (patches, numbers of a patch) and image_grid_thw (images, 3) in patches


@dataclass(frozen=True)
class Wrapper:
    """A type of model that holds a language model.

    Attributes:
        model_type: ``config.model_type`` of the folder.
        images: how it is given an image.
        marks: the argument that is 1 where tokens stand for an image, or None where there is none.
        computed_as: types of ``text_config`` that transformers has no causal class for, to the family that computes the same on text.
        axes: keys of its rotary embedding's parameters that text alone does not need.
        deepstack: key of ``vision_config`` whose list says how many of the first blocks image features are added after; or None.
    """

    model_type: str
    images: ImageForm = ImageForm.SQUARE
    marks: str | None = None
    computed_as: Mapping[str, str] = field(default_factory=dict)
    axes: tuple[str, ...] = ()
    deepstack: str | None = None


DESCRIBED = (
    Wrapper("gemma3", marks="token_type_ids"),
    Wrapper("internvl"),
    Wrapper("llava"),
    Wrapper("mistral3", ImageForm.SIZED),
    # Text has the same position on all three axes of its rotary embedding, and turns as Qwen3's does.
    Wrapper(
        "qwen3_vl",
        ImageForm.PATCHES,
        "mm_token_type_ids",
        computed_as={"qwen3_vl_text": "qwen3"},
        axes=("mrope_section", "mrope_interleaved"),
        deepstack="deepstack_visual_indexes",
    ),
)
WRAPPERS: dict[str, Wrapper] = {wrapper.model_type: wrapper for wrapper in DESCRIBED}


def text_name(name: str) -> str | None:
    """What the language model's own class calls a tensor of the whole model; None for what is not the language model's."""
    if name.startswith(WITHIN_BODY):
        return BODY + name.removeprefix(WITHIN_BODY)
    if name.startswith(BEFORE_ALL):
        return name.removeprefix(BEFORE_ALL)
    return name if name.startswith(HEAD) else None


def name_in_whole(name: str) -> str:
    """What the whole class calls a tensor or module of the language model."""
    return WITHIN_BODY + name.removeprefix(BODY) if name.startswith(BODY) else name


def name_like(name: str, example: str) -> str:
    """What a tensor of the language model is called in a file that calls another one ``example``."""
    return BEFORE_ALL + name if example.startswith(BEFORE_ALL) else name_in_whole(name)
