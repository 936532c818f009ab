"""What is asked: a fixed mix of short and long questions, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

SHORT = (
    "What is the difference between a process and a thread?",
    "用三句话介绍一下杭州。",
    "Write a Python function that returns the n-th Fibonacci number.",
    "请把这句话翻译成英文：明天上午九点开会，请大家准时参加。",
    "Name five uses of a paper clip.",
    "为什么天空是蓝色的？",
)
_ENGLISH = (
    "The service ran on one machine for three years. Requests came in over the day, were few at "
    "night, and nobody looked at it until the disk was full of logs that no one had read. "
)
_CHINESE = (
    "这台服务器运行了三年。白天请求很多，夜里很少，直到磁盘被无人查看的日志写满，才有人注意到它。"
)
LONG = (
    f"Summarize the following report in one sentence.\n\n{_ENGLISH * 16}",
    f"请用一句话概括下面的报告。\n\n{_CHINESE * 16}",
)
SHARE = 4
DESCRIPTION = (
    f"{SHARE - 1} of {SHARE} questions short (up to {max(map(len, SHORT))} characters), 1 long "
    f"({min(map(len, LONG))} to {max(map(len, LONG))}); English and Chinese; each begins with a "
    "number of its own, so that no cache knows it"
)


def questions(seed: int) -> Iterator[str]:
    """Without end. In each round of `SHARE` one is long, at any place."""
    chance = random.Random(seed)
    while True:
        turns = [*(chance.choice(SHORT) for _ in range(SHARE - 1)), chance.choice(LONG)]
        chance.shuffle(turns)
        for question in turns:
            yield f"[{chance.randrange(10**6):06}] {question}"
