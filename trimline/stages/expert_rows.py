"""What a report says of a mixture's experts: what other counts would have cost, and how often each was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.architecture.names import usage_named
from pipeline.artefacts.artefact import Artefact
from pipeline.common.files import read_json
from pipeline.curve.folder import RESULT
from pipeline.plan.plan import Plan
from trimline.reporting import ExpertCurve, ExpertPoint, Measure, RoutedRow
from trimline.stages.names import CURVE, Name


def expert_curve(done: Mapping[Name, Artefact]) -> ExpertCurve | None:
    """None where no curve was drawn."""
    if CURVE not in done:
        return None
    found = read_json(done[CURVE].folder / RESULT)
    points = tuple(
        ExpertPoint(
            kept=point["kept"],
            perplexity=Measure(point["perplexity"], error=point["standard_error"]),
            divergence=point["divergence"],
            same_best=point["same_best"],
            planned=point["planned"],
        )
        for point in found["points"]
    )
    read = f"{found['text']}, {len(found['points'][0]['window_losses'])} windows of {found['window']} tokens"
    ruled_out = tuple(one["why"] for one in found["ruled out"])
    return ExpertCurve(found["experts"], read, points, ruled_out, found["planned as ranked"], found["other units removed"])


def routed_rows(plan: Plan) -> Iterator[RoutedRow]:
    """Of the first step that counted: of the dense model, where no step before it removed anything."""
    found: dict[int, dict[int, list[float]]] = {}
    for name, chosen in plan.scores.items():
        if (named := usage_named(name)) is not None:
            found.setdefault(named[0], {})[named[1]] = chosen.tolist()
    for block, tokens in sorted(found[min(found)].items()) if found else ():
        kept = plan.selection.experts_of(block) if block in plan.selection.blocks else ()
        yield RoutedRow(block, tuple(count / (sum(tokens) or 1.0) for count in tokens), kept)
