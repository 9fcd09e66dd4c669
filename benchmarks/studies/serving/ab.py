"""Two servers of OpenAI's protocol side by side, as their client sees them: ``python -m benchmarks.studies.serving.ab DENSE_URL SMALLER_URL``.

In every round each server gets the same new prompts, in random order, and the first gets others once more: how far it is
from itself says what the comparison is worth. Nothing is sent to one server while the other is timed. Rounds that follow
each other are alike, so a few of them count as one value, as the rounds of one opening do elsewhere; what another start of
the same server would change, no interval here knows.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.formulas.statistics import Ratio, paired_ratio, verdict
from benchmarks.machine.environment import commit, environment, processor
from benchmarks.recipe import LEAST_ROUNDS
from benchmarks.results.cells import interval
from benchmarks.studies.pages import demand_folder, fill, markdown_table
from benchmarks.studies.serving.load import LoadRun, client_of, httpx2, load, prompts
from benchmarks.studies.serving.request import Endpoint, RequestSample, first_model
from benchmarks.timing.timing import CONTROL, DENSE
from pipeline.common.errors import TrimlineError
from pipeline.common.files import write_json
from pipeline.sources.recipe import DEFAULT, TextSource
from pipeline.sources.text import load_text

SMALLER = "smaller"
MEDIANS = {"TTFT": "ttft", "latency": "latency", "TPOT": "tpot"}  # as they are called here, and in a run's summaries
ALIKE = 5  # rounds that count as one value
Seconds = dict[str, dict[str, list[float]]]  # what is measured, then the server, a number per round
Requests = dict[str, list[list[RequestSample]]]  # by server, then round


def figures(run: LoadRun) -> dict[str, float]:
    """Seconds of one round: medians over its requests, and the wall time by output tokens.

    Raises:
        TrimlineError: a request failed. A comparison of what was left would flatter who failed.
    """
    if run.failures:
        raise TrimlineError(
            f"{len(run.failures)} requests of a round failed ({run.failures[0]}).", "Use fewer clients, or a larger server."
        )
    typical = {name: summary.p50 for name, summary in run.summaries().items()}
    found = {title: typical[name] for title, name in MEDIANS.items() if name in typical}
    return found | {"wall time / output tokens": 1 / run.tokens_per_second}


async def measured(
    urls: Mapping[str, str], asked: Endpoint, texts: Sequence[str], requests: int, clients: int, headers: Mapping[str, str]
) -> tuple[dict[str, Endpoint], Seconds, Requests]:
    """What each server was asked, every round's figures, and the requests that they are of.

    Args:
        urls: of ``dense`` and ``smaller``.
        asked: of both; without a model the first that a server lists.
        texts: prompts; the first ``requests`` warm the servers up, and each round takes twice as many.
        requests: of one round, to one server.
        clients: that send them.
        headers: of every request.

    Raises:
        TrimlineError: a server lists no model, or a request failed.
    """
    chance, found, raw = random.Random(0), Seconds(), Requests()
    async with AsyncExitStack() as open_:
        servers = {}
        for name, url in urls.items():
            client = await open_.enter_async_context(client_of(url, headers))
            servers[name] = client, asked if asked.model else replace(asked, model=await first_model(client))
            figures(await load(*servers[name], texts[:requests], clients))
        turns = {name: (*server, 0) for name, server in servers.items()} | {CONTROL: (*servers[DENSE], requests)}
        for start in range(requests, len(texts), 2 * requests):
            for name in chance.sample(list(turns), len(turns)):
                client, endpoint, later = turns[name]
                part = texts[start + later :][:requests]
                run = await load(client, endpoint, part, clients)
                raw.setdefault(name, []).append(run.samples)
                for what, seconds in figures(run).items():
                    found.setdefault(what, {}).setdefault(name, []).append(seconds)
    return {name: endpoint for name, (_, endpoint) in servers.items()}, found, raw


def rows(seconds: Seconds) -> list[list[str]]:
    """A line per figure: milliseconds of both, how many times less the second takes, the control, and what that shows."""
    lines = []
    for what, by_server in seconds.items():
        ratio, control = (paired_ratio(by_server[DENSE], by_server[name], each=ALIKE) for name in (SMALLER, CONTROL))
        typical = (f"{1e3 * median(by_server[name]):.2f}" for name in (DENSE, SMALLER))
        lines.append([what, str(ratio.rounds), *typical, _shown(ratio), _shown(control), verdict(ratio, control).value])
    return lines


def _shown(ratio: Ratio) -> str:
    return interval(ratio)


def main(
    dense: Annotated[str, typer.Argument(help="Base URL of the first server, such as http://127.0.0.1:8000/v1.")],
    smaller: Annotated[str, typer.Argument(help="Of the second, on other cores or alone on the same.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file for the figures and requests of every round.")],
    model: Annotated[str | None, typer.Option(help="Its name on both; default: the first that each lists.")] = None,
    rounds: Annotated[int, typer.Option(min=2, help=f"Fewer than {LEAST_ROUNDS} resolve nothing.")] = LEAST_ROUNDS,
    requests: Annotated[int, typer.Option(min=1, help="Per round and server.")] = 4,
    clients: Annotated[int, typer.Option(min=1, help="That send them.")] = 1,
    words: Annotated[int, typer.Option(min=1, help="Of each prompt.")] = 100,
    tokens: Annotated[int, typer.Option(min=1, help="Most output tokens.")] = 32,
    text: Annotated[str, typer.Option(help="Where prompts come from: 'default' or a text file.")] = DEFAULT,
    chat: Annotated[bool, typer.Option("--chat", help="Use chat completions.")] = False,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Ask for full length; an extension that not every server has.")] = False,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent to both, written nowhere.")] = None,
    page: Annotated[Path | None, typer.Option(help="Put the table into this page, at served-ab.")] = None,
) -> None:
    """Compare two servers in interleaved rounds."""
    urls = {DENSE: dense, SMALLER: smaller}
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        demand_folder(output)
        texts = prompts(load_text(TextSource(source=text), "evaluation"), words, requests * (1 + 2 * rounds))
        asked = Endpoint(model or "", chat, tokens, ignore_eos)
        try:
            endpoints, seconds, raw = asyncio.run(measured(urls, asked, texts, requests, clients, headers))
        except httpx2.InvalidURL as error:
            raise TrimlineError(f"A URL is none ({error}).", "Write it like http://127.0.0.1:8000/v1.") from None
        head = ["figure", "rounds", f"{DENSE}, ms", f"{SMALLER}, ms", "times less", CONTROL, "outcome"]
        found = markdown_table(head, rows(seconds))
        typer.echo(found)
        workload = {"rounds": rounds, "requests": requests, "clients": clients, "words": words, "text": text}
        of_servers = {name: {"url": urls[name]} | asdict(endpoint) for name, endpoint in endpoints.items()}
        samples = {name: [[asdict(sample) for sample in of_round] for of_round in of_server] for name, of_server in raw.items()}
        record = {"workload": workload, "servers": of_servers, "seconds": seconds, "samples": samples}
        write_json(output, record | {"client": environment(1)})
        if page is not None:
            how = f"{requests} requests of {words} words and {tokens} tokens per round, {clients} clients"
            fill(page, "served-ab", f"{found}\n\n{how}. {processor()}, commit {commit() or 'unknown'}.")
    except TrimlineError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
