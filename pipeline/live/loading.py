"""A checkpoint folder into a transformers model, running only modelling files that are byte for byte ours.

transformers copies a folder's Python files into a module cache before importing them; here that cache is a private
temporary folder, so that nothing is written into the user's home.
"""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from pipeline.architecture.families import FAMILIES, family_named
from pipeline.architecture.wrappers import KEY_MAPPING, text_name
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.modelling import expected_files, names_for, profile_of
from pipeline.checkpoints.weight_files import check_adapter_alone
from pipeline.common.errors import TrimlineError, shown
from pipeline.common.files import read_json
from pipeline.common.foreign import check_files

NO_ADAPTER = ".no-adapter"  # a folder that no checkpoint has


@dataclass(frozen=True)
class LoadReport:
    """How a folder's tensors and its model's parameters matched, by name."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | dict[str, int] | dict[str, str] = "cpu",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Opens a folder with transformers' real loader, in eval mode; of a larger model's folder the language model alone.

    Args:
        folder: config.json and safetensors.
        dtype: of the loaded weights; the checkpoint's own by default, as ``Checkpoint.dtype`` has it.
        device: where the weights go; or each part of the model, by the number of its GPU.
        trust_remote_code: run modelling files even where they are not ours.

    Raises:
        TrimlineError: pickled, corrupt, missing or misshapen tensors, or modelling files that are not ours.
    """
    model, report = load_with_report(folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if report.missing:
        raise TrimlineError(f"{folder} lacks {len(report.missing)} tensors of its model, first {report.missing[0]}.", MISFIT)
    return model


def load_with_report(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | dict[str, int] | dict[str, str] = "cpu",
    trust_remote_code: bool = False,
    whole: bool = False,
) -> tuple[PreTrainedModel, LoadReport]:
    """``load_model`` that hands back missing and unexpected tensors instead of refusing missing ones.

    Args:
        folder, dtype, device, trust_remote_code: as of ``load_model``.
        whole: of a larger model's folder all of it.
    """
    checkpoint = Checkpoint(folder)  # what transformers would make up, drop or put on by itself is refused or settled there
    trust = trusts(folder, checkpoint.stated, trust_remote_code)
    options: dict[str, Any] = {"trust_remote_code": trust, "use_safetensors": True, "local_files_only": True}
    # It looks for an adapter beside the weights, and here in a place where there is none: the checkpoint is the weights.
    options["adapter_kwargs"] = {"subfolder": NO_ADAPTER}
    if not isinstance(device, str):
        options["device_map"] = device
    if checkpoint.geometry.family.mixture and dtype is torch.float64:
        options["experts_implementation"] = "eager"  # the usual product of all experts at once has no fp64
    with ExitStack() as undo, quiet_transformers(), as_trimline_error(folder):
        if not isinstance(device, str) and "disk" in device.values() and checkpoint.geometry.family.stored:
            # What is stacked in memory and not in files cannot be read from these part by part: transformers writes it anew.
            options["offload_folder"] = offload = tempfile.mkdtemp(prefix="trimline-offload-")
            undo.callback(shutil.rmtree, offload, ignore_errors=True)
        if checkpoint.nested and not whole:
            options |= {"config": language_class_config(checkpoint), "key_mapping": KEY_MAPPING}
        loaded: Any = auto_class(checkpoint, whole).from_pretrained(
            folder, dtype=dtype or checkpoint.dtype, output_loading_info=True, **options
        )
        model, info = loaded
        weakref.finalize(model, undo.pop_all().close)  # these files are read for as long as the model lives
    ours = (name for name in info["unexpected_keys"] if whole or not checkpoint.nested or text_name(name) is not None)
    report = LoadReport(tuple(sorted(info["missing_keys"])), tuple(sorted(ours)))
    return (model.to(device) if isinstance(device, str) else model).eval(), report


def auto_class(checkpoint: Checkpoint, whole: bool) -> Any:
    """The Auto class that opens a folder: of a larger model's the ``whole``, or else its language model."""
    return AutoModelForImageTextToText if checkpoint.nested and whole else AutoModelForCausalLM


def language_class_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The config of the language model in a larger model's folder, as the class of its family has it."""
    config = {key: value for key, value in checkpoint.config.items() if key != "model_type"}
    made: PretrainedConfig = CONFIG_MAPPING[checkpoint.geometry.family.model_type].from_dict(config)
    return made


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder.

    Raises:
        TrimlineError: there is none, it cannot be read, or it needs code that is not ours.
    """
    folder = Path(folder)
    check_adapter_alone(folder)
    config = read_json(folder / "config.json")
    check_files(folder)
    settings = folder / "tokenizer_config.json"
    if settings.exists() and "auto_map" in read_json(settings) and not trust_remote_code:
        raise TrimlineError(f"The tokenizer of {folder} needs Python code from that folder ({settings.name}).", _TRUST)
    trust = trusts(folder, config, trust_remote_code)
    with quiet_transformers(), as_trimline_error(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        tokenizer("a", verbose=False)  # its settings are believed until it is used
        return tokenizer


_TRUST = "If you trust it, read it first and pass --trust-remote-code."


def trusts(folder: Path, config: Mapping[str, Any], trust_remote_code: bool = False) -> bool:
    """Whether transformers may run Python files of the folder; False where it needs none.

    Raises:
        TrimlineError: it needs some, and a file differs from what ``pipeline.rebuild`` ships; the file is named.
    """
    if "auto_map" not in config:
        return False
    _use_private_module_cache()
    if trust_remote_code:
        return True
    expected = expected_files(config)
    if not expected or config["auto_map"] != _expected_map(config):
        known = str(config.get("model_type")) in FAMILIES
        stock = f"transformers needs none for {config['model_type']}: delete auto_map from config.json. " if known else ""
        named = shown(config["auto_map"], 200)
        raise TrimlineError(f"config.json of {folder} names modelling code of its own (auto_map: {named}).", stock + _TRUST)
    # Every Python file counts: transformers also runs some that no auto_map names (custom_generate).
    found = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*.py"))}
    for name in sorted({*expected, *found}):
        if name not in found:
            raise TrimlineError(f"{folder} lacks {name}, which its config.json names.", "Rebuild the checkpoint.")
        if name not in expected or found[name].read_bytes() != expected[name].encode():
            raise TrimlineError(f"{found[name]} is not the file that this version of Trimline ships.", f"Rebuild the checkpoint. {_TRUST}")
    return True


def _expected_map(config: Mapping[str, Any]) -> dict[str, str]:
    names = names_for(family_named(config["base_model_type"]), profile_of(config))
    return names.auto_map if names else {}


@cache
def _use_private_module_cache() -> None:
    # The constant is read from the environment when transformers is imported, which has happened by now.
    folder = tempfile.mkdtemp(prefix="trimline-modules-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    dynamic_module_utils.HF_MODULES_CACHE = folder
    # A process that was started by another one has its search path, the other's cache included; a program may have loaded
    # modelling code before. Either way the package that transformers puts modules into would be found elsewhere.
    sys.path.insert(0, folder)
    name = dynamic_module_utils.TRANSFORMERS_DYNAMIC_MODULE_NAME
    if name in sys.modules:
        sys.modules[name].__path__.insert(0, str(Path(folder) / name))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and warnings; what they would say becomes an error here, or is expected."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def first_words(error: BaseException, most: int = 300) -> str:
    """What an error of a library says, on one line and without a full stop; its kind where it says nothing."""
    if isinstance(error, KeyError):  # says the key and nothing else
        return f"it looks for {str(error)[:most]}, which is not there"
    return " ".join(str(error).split())[:most].rstrip(" .") or type(error).__name__


# What to do about what transformers and the libraries below it say, by words that stand in it.
MISFIT = "Its config describes another model than its weights, or the modelling file that it names does."
REMEDIES = (
    ("FlashAttention", "Delete attn_implementation from config.json, which asks for a package that is not installed, or install that one."),
    ("attn_implementation", "Delete attn_implementation from config.json, or set it to sdpa."),
    ("bitsandbytes", "Give the checkpoint in full precision, or install bitsandbytes where it runs."),
    ("above report", MISFIT),
    ("Padding_idx", "Set pad_token_id in config.json to null or to an id below vocab_size."),
    (
        "Couldn't instantiate the backend tokenizer",
        "Save the model's tokenizer into the folder: AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER).",
    ),
    ("requires the following packages", "Install these packages."),
    ("pip install", "Install that package."),
)
OTHERWISE = "Correct what it names in the folder's files, or fetch or rebuild the checkpoint."


@contextmanager
def as_trimline_error(folder: Path) -> Iterator[None]:
    """What transformers raises for a folder that it cannot open, as a sentence with a remedy that fits it."""
    try:
        yield
    except (TrimlineError, MemoryError):
        raise
    except Exception as error:  # what it raises, and what the libraries below it raise, depends on what is broken
        if _was_interrupted(error):
            raise KeyboardInterrupt from error
        remedy = next((remedy for words, remedy in REMEDIES if words in str(error)), OTHERWISE)
        reason = "tensors do not fit its model" if remedy is MISFIT else first_words(error)
        raise TrimlineError(f"transformers cannot open {folder}: {reason}.", remedy) from error


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an interrupt came first: one that falls into torch's own clean-up ends as that one's error."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
