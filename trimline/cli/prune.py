"""``trimline prune``: calibrate and decide."""

from __future__ import annotations

from typing import Annotated

import typer

from trimline.cli.options import (
    Debug,
    Device,
    DeviceOption,
    DTypeName,
    DTypeOption,
    Json,
    Memory,
    Output,
    RecipeFile,
    Threads,
    Trust,
    run_options,
)
from trimline.cli.session import session


def prune(
    recipe: RecipeFile,
    output: Output,
    model: Annotated[str | None, typer.Option(help="Instead of the recipe's model.")] = None,
    device: DeviceOption = Device.CPU,
    dtype: DTypeOption = DTypeName.AUTO,
    threads: Threads = None,
    memory: Memory = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Calibrate and decide what goes; writes a plan."""
    with session(as_json, debug) as here:
        from trimline import api

        plan = api.prune(recipe, output, model=model, options=run_options(device, dtype, threads, trust, memory), events=here.events)
        selection = plan.selection
        ffn = [len(selection.ffn[block]) for block in selection.blocks]
        kv_groups = [len(selection.kv_groups[block]) for block in selection.blocks]
        experts = [len(selection.experts_of(block)) for block in selection.blocks]
        routed = f"{sum(experts)} experts, " if any(experts) else ""
        said = f"Plan in {output}: {len(ffn)} blocks, {routed}{sum(ffn)} FFN channels and {sum(kv_groups)} KV groups stay."
        here.out.print(said, soft_wrap=True)
        more = {"experts": experts} if any(experts) else {}
        here.answer({"plan": str(output), "blocks": selection.blocks, "ffn": ffn, "kv_groups": kv_groups, **more})
