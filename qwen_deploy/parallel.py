"""The same for several hosts at once, with each failure kept beside the host that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from qwen_deploy.errors import QwenDeployError

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_AT_ONCE = 32


def each(
    items: Sequence[Item], call: Callable[[Item], Result]
) -> tuple[Result | QwenDeployError, ...]:
    """Results in the order of the items; an expected error stands in its item's place."""

    def attempt(item: Item) -> Result | QwenDeployError:
        try:
            return call(item)
        except QwenDeployError as error:
            return error

    if len(items) == 1:
        return (attempt(items[0]),)
    with ThreadPoolExecutor(max_workers=min(len(items), MOST_AT_ONCE) or 1) as pool:
        return tuple(pool.map(attempt, items))
