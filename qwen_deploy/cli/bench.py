"""The command that puts load on a service and shows what it makes of it. Runs no playbook."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_deploy.cli import reach
from qwen_deploy.cli.options import Common, command
from qwen_deploy.cli.reach import Elsewhere
from qwen_deploy.errors import Interrupted, QwenDeployError, UsageError

if TYPE_CHECKING:
    from qwen_deploy.cli.output import Output
    from qwen_deploy.load.figures import Level, Spread
    from qwen_deploy.load.request import Target
    from qwen_deploy.load.run import Extent, Round

HEADER = (
    *("AT A TIME", "REQUESTS", "REQUESTS/S", "TOKENS/S"),
    *("FIRST TOKEN MS (50 95 99%)", "INTER-TOKEN MS (50 95 99%)", "ERRORS"),
)
MOST_CONCURRENT = 1024
ROUNDS = 4
LEAST_REQUESTS = 8


def register(app: typer.Typer) -> None:
    command(app, "bench")(bench)


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask, and how often."""

    concurrency: Annotated[
        str, typer.Option("--concurrency", metavar="N,...", help="How many requests at a time.")
    ] = "1,8,32"
    requests: Annotated[
        int | None,
        typer.Option("--requests", min=1, help="Requests at each [default: 4 for each, from 8]."),
    ] = None
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", min=0.1, help="Seconds in which requests begin at each."),
    ] = None
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Most tokens of an answer.")
    ] = 128
    seed: Annotated[int, typer.Option("--seed", help="Seed of the mix of questions.")] = 1

    def levels(self) -> tuple[int, ...]:
        words = [word.strip() for word in self.concurrency.split(",")]
        if not all(word.isascii() and word.isdecimal() for word in words) or not all(
            1 <= int(word) <= MOST_CONCURRENT for word in words
        ):
            raise UsageError(
                f"--concurrency {self.concurrency}: should be numbers from 1 to {MOST_CONCURRENT}",
                hint="qwen-deploy bench --concurrency 1,8,32",
            )
        return tuple(int(word) for word in words)

    def extent(self, concurrency: int) -> Extent:
        from qwen_deploy.load.run import Extent

        if self.requests is None and self.seconds is None:
            return Extent(max(LEAST_REQUESTS, ROUNDS * concurrency), None)
        return Extent(self.requests, self.seconds)

    def payloads(self, model: str) -> Iterator[dict[str, object]]:
        from qwen_deploy.load import mix

        for question in mix.questions(self.seed):
            yield {
                "model": model,
                "messages": [{"role": "user", "content": question}],
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": self.max_tokens,
                "temperature": 0,
            }


def bench(
    common: Common,
    load: Load,
    elsewhere: Elsewhere,
    direct: Annotated[
        bool, typer.Option("--direct", help="Straight to the port, without ssh between.")
    ] = False,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw rates and times below the table.")
    ] = False,
) -> int:
    """Put load on a service and show how quickly it answers.

    qwen-deploy bench --host root@192.168.110.131

    qwen-deploy bench --url http://127.0.0.1:8000/v1 --seconds 30
    """
    wanted = load.levels()
    reach.check_one(common, "bench", elsewhere)
    if direct and elsewhere.url:
        raise UsageError("--direct goes with --host; --url is direct already")
    with reach.target(common, elsewhere, direct=direct) as (target, way):
        common.out.note(f"asking {target.model} at {way}")
        levels, error = _levels(target, load, wanted, common.out)
    _show(common.out, levels, {**_told(target, way, load), "is_whole": error is None})
    if plot and levels:
        from qwen_deploy.load import plot as picture

        common.out.line(f"\n{picture.draw(levels, shutil.get_terminal_size().columns)}")
    if error:
        raise error
    return 0


def _levels(
    target: Target, load: Load, wanted: tuple[int, ...], out: Output
) -> tuple[list[Level], QwenDeployError | None]:
    """The levels that were measured, the last perhaps in part, and why there are no more."""
    from qwen_deploy.load import figures, mix
    from qwen_deploy.load.request import Connection
    from qwen_deploy.load.run import measure

    payloads = load.payloads(target.model)
    out.note(f"mix: {mix.DESCRIPTION}; greedy, at most {load.max_tokens} tokens, seed {load.seed}")
    levels: list[Level] = []
    now = "before the first figure"
    try:
        first = Connection(target).ask(next(payloads))  # what is slow once is no figure
        if first.error:
            return levels, QwenDeployError(f"the first request failed: {first.error}")
        for concurrency in wanted:
            now = f"at {concurrency} at a time"
            extent = load.extent(concurrency)

            def tell(round: Round, extent: Extent = extent) -> None:
                out.now(_progress(round, extent))

            round = measure(target, concurrency, extent, payloads, tell=tell, clock=time.monotonic)
            out.now(None)
            if round.samples:
                levels.append(figures.level(concurrency, round.samples))
                out.note(_line(levels[-1]))
            if round.is_interrupted:
                return levels, Interrupted(f"interrupted {now}")
            if round.is_given_up:
                return levels, QwenDeployError(f"gave up {now}: only failures")
    except KeyboardInterrupt:  # between two levels
        return levels, Interrupted(f"interrupted {now}")
    return levels, None


def _progress(round: Round, extent: Extent) -> str:
    from qwen_deploy.load import figures

    now = figures.level(round.concurrency, tuple(round.samples))
    of = f" of {extent.requests}" if extent.requests is not None else ""
    failed = f", {sum(now.errors.values())} failed" if now.errors else ""
    return (
        f"{round.concurrency} at a time: {now.requests}{of} requests{failed}, "
        f"{now.tokens_per_second:.1f} tokens/s"
    )


def _line(level: Level) -> str:
    return (
        f"{level.concurrency} at a time: {level.answered} of {level.requests} answered in "
        f"{level.seconds:.1f} s"
    )


def _told(target: Target, way: str, load: Load) -> dict[str, Any]:
    from qwen_deploy.load import mix

    return {
        "event": "bench",
        "model": target.model,
        "way": way,
        "mix": mix.DESCRIPTION,
        "max_tokens": load.max_tokens,
        "seed": load.seed,
    }


def _show(out: Output, levels: list[Level], told: dict[str, Any]) -> None:
    out.value({**told, "levels": [level.as_json() for level in levels]})
    if levels:
        out.table(HEADER, [_row(level) for level in levels])
    if any(level.counts_pieces for level in levels):
        out.note("the server counts no tokens: the pieces of its streams stand for them")


def _row(level: Level) -> tuple[str, ...]:
    return (
        str(level.concurrency),
        str(level.requests),
        f"{level.requests_per_second:.2f}",
        f"{level.tokens_per_second:.1f}",
        _milliseconds(level.first_token),
        _milliseconds(level.inter_token),
        ", ".join(f"{count} {kind}" for kind, count in level.errors.items()) or "-",
    )


def _milliseconds(spread: Spread) -> str:
    values = (spread.p50, spread.p95, spread.p99)
    return " ".join("-" if one is None else f"{1000 * one:.0f}" for one in values)
