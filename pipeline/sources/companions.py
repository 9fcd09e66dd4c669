"""What comes along with a model's weights: every file of its folder, but for what this list leaves out and why.

One rule for all that is made of a checkpoint (rebuilt, recovered, exported, packaged) and for what is fetched from the hub. A list of
what is taken would drop what it does not know: chat templates by name, ``tekken.json``, ``vocab.txt``, the settings of processors.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from pipeline.artefacts.artefact import MEASURED, RECORD, SUMS
from pipeline.common.events import Events
from pipeline.common.files import GATE
from pipeline.common.foreign import check_link
from pipeline.plan.folder import PLAN

LARGEST = 128 * 2**20  # bytes of one file; the largest tokenizers that are published have a quarter of it
ALTOGETHER = 2**30


@dataclass(frozen=True)
class LeftOut:
    """Files that do not come along.

    Attributes:
        why: half a sentence.
        names: patterns of file names, in lower case.
        fetched: the model itself needs them, so they come from the hub.
        marks: a folder inside the checkpoint's that holds such a file is another model, and stays behind as a whole.
    """

    why: str
    names: tuple[str, ...]
    fetched: bool = False
    marks: bool = False


LEFT_OUT = (
    LeftOut("weights and their index, which are written anew", ("*.safetensors", "*.safetensors.index.json"), fetched=True, marks=True),
    LeftOut("the config, which is written anew", ("config.json",), fetched=True, marks=True),
    LeftOut("adapters, which are for the weights that were there", ("adapter_config.json",), fetched=True, marks=True),
    LeftOut(
        "pickles, which can run code: weights, states of a training",
        ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib"),
        marks=True,
    ),
    LeftOut(
        "weights in the format of another program",
        ("*.h5", "*.h5.index.json", "*.msgpack", "*.msgpack.index.json", "*.ot", "*.npz", "*.npy", "*.gguf", "*.ggml", "*.onnx",
         "*.onnx_data*", "*.onnx.data", "*.tflite", "*.mlmodel", "*.mlpackage", "*.engine", "*.plan", "*.imatrix", "*.dat", "*.xml"),
        marks=True,
    ),  # fmt: skip
    LeftOut("code", ("*.py", "*.pyc", "*.so", "*.dll", "*.dylib", "*.sh", "*.bat", "*.exe", "*.ipynb"), marks=False),
    LeftOut("sizes of the weights that were there, for another program", ("params.json",)),
    LeftOut(
        "how weights were quantised, which those that are written are not",
        ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json", "recipe.yaml"),
    ),
    LeftOut("states of a training", ("optimizer*", "scheduler*", "rng_state*", "trainer_state.json", "training_args*", "events.out.*")),
    LeftOut(
        "records of this project, which each folder has of its own",
        (SUMS.lower(), RECORD, MEASURED, PLAN, GATE, "source.json", "recover.json", "export.json", "checkpoint_config.json", "genai_config.json"),
    ),
    LeftOut("hidden files", (".*",)),
)  # fmt: skip


@dataclass(frozen=True)
class Companions:
    """What comes along from a folder.

    Attributes:
        taken: paths relative to the folder, in order, with forward slashes.
        too_large: those that would, were they smaller.
    """

    taken: tuple[str, ...]
    too_large: tuple[str, ...]


def companions(folder: Path) -> Companions:
    """The files of a checkpoint folder that come along with its weights.

    Raises:
        TrimlineError: one is a link that leads out of the folder.
    """
    taken, too_large, left = [], [], ALTOGETHER
    for name in sorted(_candidates(folder, PurePosixPath())):
        path = folder / name
        check_link(path, folder)
        size = path.stat().st_size
        if size > LARGEST or size > left:
            too_large.append(name)
        else:
            taken.append(name)
            left -= size
    return Companions(tuple(taken), tuple(too_large))


def copy_companions(source: Path, out: Path, events: Events) -> None:
    """Copies what comes along, byte for byte, and says what is too large for it.

    Raises:
        TrimlineError: as ``companions``.
    """
    found = companions(source)
    for name in found.taken:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, out / name)
    if found.too_large:
        events.note(f"left behind, since it is larger than what comes along with weights: {', '.join(found.too_large)}")


def why_left_out(name: str) -> str:
    """Half a sentence on why a file of this name does not come along; empty where it does."""
    if not name.isprintable() or "\\" in name:  # which no list of sums can hold
        return "names that cannot be listed"
    return next((kind.why for kind in LEFT_OUT if _matches(name, kind)), "")


def not_fetched(sizes: Mapping[str, int | None]) -> list[str]:
    """Patterns of the paths in a hub repository that are not fetched: what neither the model needs nor comes along with it.

    Args:
        sizes: path to bytes, as far as the hub says.
    """
    names = [name for kind in LEFT_OUT if not kind.fetched for name in kind.names]
    weights = [kind for kind in LEFT_OUT if kind.fetched]
    large = [path for path, size in sizes.items() if size and size > LARGEST and not any(_matches(path, kind) for kind in weights)]
    return [place + name for name in names for place in ("", "*/")] + [glob.escape(path) for path in large]


def _candidates(folder: Path, below: PurePosixPath) -> Iterator[str]:
    """Paths of the files whose names let them come along; of folders inside, those that are no other model."""
    with os.scandir(folder / below) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    files = [entry for entry in entries if entry.is_file()]
    if below.parts and any(_matches(entry.name, kind) for entry in files for kind in LEFT_OUT if kind.marks):
        return
    for entry in files:
        if not why_left_out(entry.name):
            yield (below / entry.name).as_posix()
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _candidates(folder, below / entry.name)


def _matches(name: str, kind: LeftOut) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in kind.names)
