"""Load for a service, without one: the mix, the figures, the picture, the command line."""

from __future__ import annotations

import itertools
import json
import socket

import pytest

from qwen_deploy.cli.bench import Load
from qwen_deploy.errors import UsageError
from qwen_deploy.load import figures, mix, plot
from qwen_deploy.load.figures import Spread
from qwen_deploy.load.request import Response, Sample, take
from qwen_deploy.load.run import Extent


def first(count: int, seed: int) -> list[str]:
    return list(itertools.islice(mix.questions(seed), count))


def test_the_mix_is_fixed_by_its_seed_and_asks_nothing_twice() -> None:
    asked = first(400, seed=1)
    assert asked == first(400, seed=1) != first(400, seed=2)
    longest_short = max(map(len, mix.SHORT)) + len("[123456] ")
    assert sum(len(one) > longest_short for one in asked) == 100
    assert len({one[:9] for one in asked}) > 390
    assert all(f"{len(one)}" in mix.DESCRIPTION for one in (min(mix.LONG, key=len),))


def test_percentiles_are_values_that_were_measured() -> None:
    assert Spread.of([]) == Spread(None, None, None)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    hundred = [float(value) for value in range(100, 0, -1)]
    assert Spread.of(hundred) == Spread(50.0, 95.0, 99.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.0, 2.0, 2.0)


SAMPLES = (
    Sample(0.0, 0.5, 2.0, [0.25, 0.75], pieces=3, tokens=4, prompt_tokens=10),
    Sample(1.0, 2.0, 4.0, [0.5], pieces=2, tokens=6, prompt_tokens=20),
    Sample(1.0, None, 1.5, error="HTTP 429", retry_after=1.0),
    Sample(2.0, 2.5, 3.0, [9.0], pieces=2, error="connection lost"),
    Sample(2.0, None, 2.5, error="HTTP 429"),
)


def event(text: str) -> bytes:
    chunk = {"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def test_pieces_that_came_together_have_no_time_between_them() -> None:
    moments = iter([10.5, 10.5, 10.75, 12.0, 12.0])
    sample = Sample(asked_at=10.0)
    take(map(event, "abcde"), sample, lambda: next(moments))
    assert (sample.pieces, sample.first_at, sample.gaps) == (5, 10.5, [0.25, 1.25])


def test_chunks_that_came_together_are_not_timed_by_when_they_are_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Response(ours, method="POST") as response:
        body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in map(event, "abcde"))
        theirs.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"
        )
        response.begin()
        sample = Sample(asked_at=0.0)
        take(response.chunks(), sample, response.arrived_at)
        assert (sample.pieces, sample.gaps) == (5, [])
        assert sample.first_at == response.arrived_at() > 0
        assert response.isclosed()


def test_a_level_counts_answers_alone_and_errors_by_kind() -> None:
    level = figures.level(2, SAMPLES)
    assert (level.requests, level.answered, level.seconds) == (5, 2, 4.0)
    assert (level.requests_per_second, level.tokens_per_second) == (0.5, 2.5)
    assert (level.tokens, level.prompt_tokens) == (10, 30)
    assert level.first_token == Spread(0.5, 1.0, 1.0)
    assert level.inter_token == Spread(0.5, 0.75, 0.75)
    assert level.end_to_end == Spread(2.0, 3.0, 3.0)
    assert level.errors == {"HTTP 429": 2, "connection lost": 1}
    assert not level.counts_pieces


def test_pieces_stand_for_tokens_where_nobody_counts_them() -> None:
    level = figures.level(1, [Sample(0.0, 0.5, 1.0, [0.1], pieces=2)])
    assert (level.tokens, level.counts_pieces) == (2, True)
    assert figures.level(1, []).tokens_per_second == 0.0


@pytest.mark.parametrize("columns", [10, 80, 200])
def test_the_plot_marks_every_level_and_fits_the_terminal(columns: int) -> None:
    levels = [figures.level(concurrency, SAMPLES) for concurrency in (1, 8)]
    levels.append(figures.level(32, [Sample(0.0, error="HTTP 503", ended_at=1.0)]))
    rates, times = plot.draw(levels, columns).split("\n\n")
    for drawn, markers in ((rates, "o"), (times, "ox")):
        assert all(drawn.count(marker) >= 3 for marker in markers)
        (axis,) = [line for line in drawn.splitlines() if line.startswith(" " * 11 + "| 1 ")]
        assert axis.split() == ["|", "1", "8", "32"]
    assert all(len(line) <= max(columns, 60) for line in rates.splitlines())
    assert "p99" in times and plot.draw(levels[:1], columns)


def test_how_much_is_asked_follows_from_the_options() -> None:
    assert Load().levels() == (1, 8, 32)
    assert [Load().extent(one) for one in (1, 8)] == [Extent(8, None), Extent(32, None)]
    assert Load(requests=5).extent(8) == Extent(5, None)
    assert Load(seconds=2.5).extent(8) == Extent(None, 2.5)
    assert Load(requests=5, seconds=2.5).extent(8) == Extent(5, 2.5)


@pytest.mark.parametrize("concurrency", ["", "0", "1,,2", "a", "-1", "1025", "1.5", "²"])
def test_wrong_numbers_at_a_time_are_an_error(concurrency: str) -> None:
    with pytest.raises(UsageError, match="should be numbers from 1 to 1024"):
        Load(concurrency=concurrency).levels()
