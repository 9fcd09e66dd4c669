"""The stage that runs tasks of the lm-eval harness on a checkpoint."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.harness.files import identify
from pipeline.evaluate.harness.scores import RESULT, scores
from pipeline.evaluate.harness.tasks import alone, harness_version, open_tasks
from pipeline.evaluate.recipe import LmEvalSlice
from pipeline.live.loading import load_tokenizer
from pipeline.live.paging import open_model
from pipeline.sources.model import checkpoint_folder

MOST_TOKENS = 2048  # of a config that names no limit; the harness's own


def examine(checkpoint: Path, recipe: LmEvalSlice, options: RunOptions, out: Path, events: Events) -> None:
    """Stage: writes tasks.json.

    The model is loaded here, by the project's own loader, and handed over: the harness fetches nothing and trusts nothing.

    Args:
        checkpoint: a source artefact, a checkpoint folder or a rebuild artefact.
        recipe: tasks, documents, examples.
        options: device and threads; the dtype is the checkpoint's own.
        out: empty folder.
        events: progress.

    Raises:
        TrimlineError: the harness or a task is missing, or the checkpoint does not load or fit into the memory.
    """
    harness_version()
    options.apply()
    folder = checkpoint_folder(checkpoint)
    tasks = open_tasks(recipe, events)
    Checkpoint(folder).say_doubts(events)
    write_json(out / RESULT, {"form": "checkpoint"} | scores(_model(folder, recipe, options), tasks, recipe, events))


def depends_on(recipe: LmEvalSlice) -> dict[str, Any]:
    """What a stage's key depends on beside the model: the recipe, the files behind it, the harness and the reader of its data."""
    libraries = {"lm_eval": harness_version(), "datasets": version("datasets")}
    return {"recipe": recipe.model_dump(mode="json"), "tasks": identify(recipe), "harness": libraries}


def _model(folder: Path, recipe: LmEvalSlice, options: RunOptions) -> Any:
    from lm_eval.models.huggingface import HFLM

    source = Checkpoint(folder)
    tokenizer = load_tokenizer(folder, trust_remote_code=options.trust_remote_code)
    model, paging = open_model(folder, options)
    if paging is not None:
        raise TrimlineError(f"{folder} does not fit into the memory, and lm-eval needs the whole model.", "Use a machine with more.")
    longest = int(source.config.get("max_position_embeddings") or MOST_TOKENS)
    with alone():
        return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", max_length=longest, batch_size=recipe.batch)
