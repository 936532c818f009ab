"""Levels as a picture for the terminal. The only user of plotille."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwen_deploy.load.figures import Level

AXIS = 26
TICK = 10  # plotille writes below every tenth column
WIDEST = 6
HEIGHT = 10


def draw(levels: Sequence[Level], columns: int) -> str:
    """Tokens a second, and below them the time to the first token."""
    rates = {"tokens a second": ("o", [one.tokens_per_second for one in levels])}
    times = {
        f"to the first token, p{percent}": (
            marker,
            [1000 * (getattr(one.first_token, f"p{percent}") or 0.0) for one in levels],
        )
        for percent, marker in ((50, "o"), (99, "x"))
    }
    return "\n\n".join(
        _figure(levels, unit, lines, columns)
        for unit, lines in (("tokens/s", rates), ("ms", times))
    )


def _figure(
    levels: Sequence[Level], unit: str, lines: Mapping[str, tuple[str, list[float]]], columns: int
) -> str:
    """The levels stand at equal distances: on a scale the small ones would fall together."""
    from plotille import Figure

    gaps = max(1, len(levels) - 1)
    step = max(1, min((columns - AXIS) // TICK, WIDEST) // gaps)
    ticks = gaps * step + 1
    names = {number * step: str(one.concurrency) for number, one in enumerate(levels)}
    figure = Figure()
    figure.with_colors = False
    figure.origin = False
    figure.width, figure.height = TICK * ticks, HEIGHT
    figure.x_label, figure.y_label = "at a time", unit
    figure.set_x_limits(min_=0, max_=ticks)
    figure.set_y_limits(min_=0, max_=1.1 * max(max(values) for _, values in lines.values()) or 1)
    figure.y_ticks_fkt = lambda value, _: f"{value:.1f}"
    figure.x_ticks_fkt = lambda value, _: names.get(round(value), "")
    for label, (marker, values) in lines.items():
        figure.plot(list(names), values, label=label, marker=marker)
    shown = str(figure.show(legend=True)).replace("\n\nLegend:\n-------", "")
    return "\n".join(line.rstrip(" \u2800") for line in shown.splitlines())
