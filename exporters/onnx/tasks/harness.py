"""The stage that runs tasks of the lm-eval harness on an exported graph."""

from __future__ import annotations

from pathlib import Path

import torch

from exporters.folder import EXPORT
from exporters.onnx.gate.divergence import compare_distributions
from exporters.onnx.running.session import OnnxDecoder
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.gates import gate_tokens
from pipeline.evaluate.harness.scores import RESULT, scores
from pipeline.evaluate.harness.tasks import alone, harness_version, open_tasks
from pipeline.evaluate.recipe import LmEvalSlice

PROBE = 24  # tokens


def examine_graph(folder: Path, recipe: LmEvalSlice, options: RunOptions, out: Path, events: Events) -> None:
    """Stage: writes tasks.json, as ``pipeline.evaluate.harness.stage`` does for a checkpoint.

    Args:
        folder: what the export stage wrote.
        recipe: tasks, documents, examples.
        options: device and threads.
        out: empty folder.
        events: progress.

    Raises:
        TrimlineError: the harness, a task or ONNX Runtime is missing, or the graph does not run.
        GateError: the graph with the logits of all positions does not predict what the delivered one does.
    """
    harness_version()
    tasks = open_tasks(recipe, events)
    decoder, gate = _gated(folder, options, events)
    from exporters.onnx.tasks.graph_model import GraphLM

    with alone():
        model = GraphLM(folder, decoder, recipe.batch)
    form = {"form": "onnx", "precision": read_json(folder / EXPORT)["precision"], "gate": gate}
    write_json(out / RESULT, form | scores(model, tasks, recipe, events))


def _gated(folder: Path, options: RunOptions, events: Events) -> tuple[OnnxDecoder, dict[str, object]]:
    """The graph with the logits of all positions, compared with what is delivered; one session at a time."""
    delivered = OnnxDecoder(folder, options.threads, options.device)
    ids = gate_tokens(delivered.vocab, rows=1, length=PROBE).numpy()
    wanted = torch.from_numpy(delivered.logits(ids)[:, -1:]).float()
    del delivered
    decoder = OnnxDecoder(folder, options.threads, options.device, every_position=True)
    found = compare_distributions(wanted, torch.from_numpy(decoder.logits(ids)[:, -1:]).float())
    events.gate(f"ONNX, logits of all positions: KL divergence {found.difference:.2g} from the delivered graph", **found.as_record())
    if not found.passed:
        raise GateError(
            f"{folder} with the logits of all positions is {found.difference:.3g} nats from the delivered graph.",
            "This is a fault of the conversion, not of the recipe; please report it with the recipe.",
        )
    return decoder, found.as_record()
