"""Load on a server, measured by its client: ``python -m benchmarks.studies.serving.load http://127.0.0.1:8000/v1``.

The server speaks OpenAI's protocol, or is a Triton (``--protocol triton http://127.0.0.1:8000``).

A fixed number of clients each send the next request as soon as their last one has ended. Every request has a prompt of
its own. Definitions stand in ``benchmarks.studies.serving.request`` and are printed beside the figures.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

try:
    import httpx2
except ImportError:
    raise SystemExit("error: The client needs httpx2. Run pip install 'trimline[serve]'.") from None

from benchmarks.formulas.statistics import Summary, summarise
from benchmarks.machine.environment import environment
from benchmarks.studies.pages import demand_folder, markdown_table
from benchmarks.studies.serving.request import Endpoint, RequestFailed, RequestForm, RequestSample, first_model, timed
from benchmarks.studies.serving.service_levels import levels
from benchmarks.studies.serving.service_levels import table as levels_table
from benchmarks.studies.serving.triton import TritonEndpoint, first_triton_model
from pipeline.common.errors import TrimlineError
from pipeline.sources.recipe import DEFAULT, TextSource
from pipeline.sources.text import load_text

LEAST_REQUESTS, LEAST_SECONDS = 10, 3.0
SHOWN = ("n", "mean", "minimum", "p50", "p75", "p90", "p95", "p99", "maximum", "deviation")
FORMULAS = {
    "ttft": "TTFT: first text received − request sent",
    "tpot": "TPOT: (latency − TTFT) / (output tokens − 1), per request",
    "itl": "ITL: gaps between pieces of text, pooled",
    "latency": "end-to-end latency: last text received − request sent",
}


class Protocol(StrEnum):
    """How the server is spoken to."""

    OPENAI = "openai"
    TRITON = "triton"


@dataclass(frozen=True)
class LoadRun:
    """Requests of one concurrency.

    Attributes:
        concurrency: clients.
        seconds: from the first request sent to the last answer ended.
        samples: requests that were answered, in the order of their ends.
        failures: what went wrong with the others.
    """

    concurrency: int
    seconds: float
    samples: list[RequestSample]
    failures: list[str]

    def summaries(self) -> dict[str, Summary]:
        """Statistics in seconds, by name; a metric without samples is left out."""
        raw = {
            "ttft": [sample.ttft for sample in self.samples],
            "tpot": [sample.tpot for sample in self.samples if sample.tpot is not None],
            "itl": [gap for sample in self.samples for gap in sample.gaps],
            "latency": [sample.latency for sample in self.samples],
        }
        return {name: summarise(values) for name, values in raw.items() if values}

    @property
    def tokens_per_second(self) -> float:
        """All output tokens over the wall time."""
        return sum(sample.output_tokens for sample in self.samples) / self.seconds

    @property
    def tokens_per_second_per_user(self) -> float | None:
        """1 / median TPOT; None where no request has one."""
        tpot = self.summaries().get("tpot")
        return 1 / tpot.p50 if tpot and tpot.p50 else None

    @property
    def too_short(self) -> bool:
        """Too few requests or too little time for the figures to say much."""
        return len(self.samples) < LEAST_REQUESTS or self.seconds < LEAST_SECONDS

    def as_record(self) -> dict[str, Any]:
        """For JSON, raw samples included."""
        return asdict(self) | {
            "output_tokens_per_second": self.tokens_per_second,
            "output_tokens_per_second_per_user": self.tokens_per_second_per_user,
            "service_levels": [level.as_record() for level in levels(self.samples, len(self.failures))],
            "too_short": self.too_short,
            "summaries": {name: summary.as_record() for name, summary in self.summaries().items()},
        }


def prompts(text: str, words: int, number: int) -> list[str]:
    """Consecutive, different parts of a text.

    Raises:
        TrimlineError: the text is too short.
    """
    found = text.split()
    if len(found) < words * number:
        raise TrimlineError(f"{number} prompts of {words} words need {words * number} words; the text has {len(found)}.", "Ask for fewer.")
    return [" ".join(found[at * words : (at + 1) * words]) for at in range(number)]


async def load(client: httpx2.AsyncClient, endpoint: RequestForm, texts: Sequence[str], concurrency: int) -> LoadRun:
    """Sends every text once, never more than ``concurrency`` at a time."""
    waiting, samples, failures = iter(texts), [], []
    began = time.perf_counter()

    async def one_client() -> None:
        for text in waiting:
            try:
                samples.append(await timed(client, endpoint, text, began))
            except RequestFailed as error:
                failures.append(str(error))

    await asyncio.gather(*(one_client() for _ in range(concurrency)))
    return LoadRun(concurrency, time.perf_counter() - began, samples, failures)


def client_of(url: str, headers: Mapping[str, str]) -> httpx2.AsyncClient:
    """A client of a server, that as many requests as wanted go through at once.

    Raises:
        httpx2.InvalidURL: it is no URL.
    """
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx2.AsyncClient(base_url=f"{url.rstrip('/')}/", headers=dict(headers), timeout=600, limits=limits)


def table(run: LoadRun) -> str:
    """Statistics in milliseconds, as Markdown."""

    def cell(summary: Summary, name: str) -> str:
        value = getattr(summary, name)
        if name == "n":
            return str(value)
        return f"n/a (n={summary.n})" if value is None else f"{1e3 * value:.2f}"

    rows = [[FORMULAS[name], *(cell(summary, column) for column in SHOWN)] for name, summary in run.summaries().items()]
    return markdown_table(["ms", *SHOWN], rows)


def page(run: LoadRun) -> str:
    """What is printed of a run."""
    counts = {
        "prompt": [s.prompt_tokens for s in run.samples if s.prompt_tokens is not None],
        "output": [s.output_tokens for s in run.samples],
    }
    lines = [f"Concurrency {run.concurrency}: {len(run.samples)} answered, {len(run.failures)} failed, {run.seconds:.2f} s."]
    if run.samples:
        lengths = "; ".join(f"{name} tokens {min(values)} to {max(values)}" for name, values in counts.items() if values)
        of_user = run.tokens_per_second_per_user
        user = "" if of_user is None else f"{of_user:.1f} output tokens/s/user (1 / median TPOT); "
        lines += [f"{run.tokens_per_second:.1f} output tokens/s (all output tokens / wall time); {user}{lengths}.", "", table(run)]
        lines += ["", levels_table(levels(run.samples, len(run.failures))), ""]
    if run.too_short:
        lines.append(f"Below {LEAST_REQUESTS} requests or {LEAST_SECONDS:g} s: too short to rely on.")
    return "\n".join([*lines, *(f"failed: {failure}" for failure in run.failures[:3]), ""])


def main(
    url: Annotated[str, typer.Argument(help="Base URL, such as http://127.0.0.1:8000/v1.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file for figures and raw samples.")],
    model: Annotated[str | None, typer.Option(help="Default: the first that the server lists.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="Per concurrency.")] = 100,
    concurrency: Annotated[list[int] | None, typer.Option(min=1, help="Clients; repeat it for a sweep. Default: 1 and 4.")] = None,
    words: Annotated[int, typer.Option(min=1, help="Of each prompt.")] = 100,
    tokens: Annotated[int, typer.Option(min=1, help="Most output tokens.")] = 64,
    text: Annotated[str, typer.Option(help="Where prompts come from: 'default' or a text file.")] = DEFAULT,
    protocol: Annotated[Protocol, typer.Option(help="openai, or triton: generate_stream of a model that streams.")] = Protocol.OPENAI,
    chat: Annotated[bool, typer.Option("--chat", help="Use chat completions.")] = False,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Ask for full length; an extension that not every server has.")] = False,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests before, which are not counted.")] = 2,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent to the server, written nowhere.")] = None,
) -> None:
    """Measure time to first token, time per token and throughput."""
    sweep = concurrency or [1, 4]
    try:
        demand_folder(output)
        texts = prompts(load_text(TextSource(source=text), "evaluation"), words, warm_up + requests * len(sweep))
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        asked = _asked(protocol, model or "", chat, tokens, ignore_eos)
        try:
            endpoint, first, runs = asyncio.run(_measure(url, headers, asked, texts, warm_up, requests, sweep))
        except httpx2.InvalidURL as error:
            raise TrimlineError(f"{url!r} is no URL ({error}).", "Write it like http://127.0.0.1:8000/v1.") from None
    except TrimlineError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    if first is not None:
        typer.echo(f"First request, not counted below: TTFT {1e3 * first.ttft:.2f} ms, latency {1e3 * first.latency:.2f} ms.\n")
    typer.echo("\n".join(page(run) for run in runs))
    workload = asdict(endpoint) | {"protocol": protocol.value, "requests": requests, "words": words, "warm_up": warm_up, "text": text}
    record: dict[str, Any] = {"url": url, "workload": workload, "first_request": first and first.as_record()}
    record |= {"runs": [run.as_record() for run in runs], "client": environment(1)}
    output.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if any(run.failures for run in runs):
        raise typer.Exit(1)


async def _measure(
    url: str, headers: dict[str, str], asked: Endpoint | TritonEndpoint, texts: list[str], warm_up: int, requests: int, sweep: list[int]
) -> tuple[Endpoint | TritonEndpoint, RequestSample | None, list[LoadRun]]:
    async with client_of(url, headers) as client:
        find = first_triton_model if isinstance(asked, TritonEndpoint) else first_model
        endpoint = asked if asked.model else replace(asked, model=await find(client))
        warm = await load(client, endpoint, texts[:warm_up], 1)
        if warm.failures:
            raise TrimlineError(f"{url} does not answer as it should ({warm.failures[0]}).", "Check URL, model, key and lengths.")
        parts = [texts[warm_up + at * requests :][:requests] for at in range(len(sweep))]
        first = warm.samples[0] if warm.samples else None
        return endpoint, first, [await load(client, endpoint, part, clients) for clients, part in zip(sweep, parts, strict=True)]


def _asked(protocol: Protocol, model: str, chat: bool, tokens: int, ignore_eos: bool) -> Endpoint | TritonEndpoint:
    """Raises TrimlineError where Triton is asked for what its models do not take."""
    if protocol is Protocol.OPENAI:
        return Endpoint(model, chat, tokens, ignore_eos)
    if chat or ignore_eos:
        raise TrimlineError("A Triton model takes neither --chat nor --ignore-eos.", "Leave them out.")
    return TritonEndpoint(model, tokens)


if __name__ == "__main__":
    typer.run(main)
