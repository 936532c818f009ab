"""The service's life: load, prove by a real completion, watch and test, drain.

Knows neither HTTP nor how an engine computes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time

import psutil

from qwen_service.engine import (
    Broken,
    Chat,
    Embedded,
    Embedding,
    Event,
    Failed,
    Finished,
    Generation,
    Loaded,
    Loading,
    Report,
    Sampling,
    Stats,
    Text,
)
from qwen_service.lifecycle.progress import Progress
from qwen_service.lifecycle.readiness import Readiness
from qwen_service.lifecycle.selftest import SelfTest
from qwen_service.settings import Settings

log = logging.getLogger("qwen_service")

PULSE_SECONDS = 0.5
# A pulse that came late, as of a process that was stopped, says nothing about the engine.
LONGEST_PULSE_SECONDS = 2 * PULSE_SECONDS
# How often systemd is told how the service fares.
STATUS_SECONDS = 1.0
# How long a load may go without progress, told to systemd anew at each sign of progress.
STALL_SECONDS = 90.0
# A process that idles uses less of a CPU than this; one that loads, more.
BUSY_SHARE = 0.2
MEBIBYTE = 1024 * 1024


class Supervisor:
    def __init__(
        self,
        settings: Settings,
        engine: SelfTest,
        readiness: Readiness,
        *,
        watchdog_seconds: float | None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._readiness = readiness
        self._watched = watchdog_seconds is not None
        self._pulse_seconds = min(PULSE_SECONDS, (watchdog_seconds or PULSE_SECONDS) / 4)
        self._process = psutil.Process()
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        self._progress = Progress()
        self._told_at = 0.0
        self._told_tokens = 0

    async def run(self) -> str:
        """Serves until the engine breaks, and returns why it did."""
        loop = asyncio.get_running_loop()

        def report(news: Report) -> None:
            with contextlib.suppress(RuntimeError):
                # The loop may be closed by now: the process is going away.
                loop.call_soon_threadsafe(self._reports.put_nowait, news)

        self._engine.start(report)
        pulse = asyncio.ensure_future(self._pulse())
        try:
            reason = await self._follow()
        finally:
            pulse.cancel()
        self._readiness.failed(reason)
        log.error("qwen_service: %s", reason)
        return reason

    async def _follow(self) -> str:
        while True:
            match await self._reports.get():
                case Loading(step):
                    self._readiness.loading(step)
                case Loaded(facts):
                    self._readiness.facts = facts
                    self._readiness.loading("first completion")
                    if failure := await self._prove(facts.kind):
                        return f"the model does not answer: {failure}"
                    # What was loaded stays: going over it takes half a second in which nobody is
                    # answered, again and again.
                    gc.collect()
                    gc.freeze()
                    self._readiness.ready()
                    log.info("qwen_service: %s", self._line(self._engine.stats(), 0.0))
                case Broken(reason):
                    return reason

    async def _prove(self, kind: str) -> str | None:
        """A completion through the very loop that serves requests; None when it came."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Finished | Embedded | Failed] = loop.create_future()

        def deliver(event: Event) -> None:
            if isinstance(event, Finished | Embedded | Failed):
                loop.call_soon_threadsafe(done.set_result, event)

        self._engine.submit(_first(kind), deliver)
        event = await done
        return str(event.error) if isinstance(event, Failed) else None

    async def _pulse(self) -> None:
        last_work, last_time = self._work(), time.monotonic()
        self._told_at = last_time
        while True:
            await asyncio.sleep(self._pulse_seconds)
            stats, work, now = self._engine.stats(), self._work(), time.monotonic()
            if self._readiness.state in ("starting", "loading"):
                if self._loads(last_work, work, now - last_time):
                    self._readiness.needs_time(STALL_SECONDS)
            else:
                self._watch(stats, min(now - last_time, LONGEST_PULSE_SECONDS))
                if now - self._told_at >= STATUS_SECONDS:
                    self._tell(stats, now)
            last_work, last_time = work, now

    def _watch(self, stats: Stats, seconds: float) -> None:
        """Feeds the watchdog, finds the engine stuck or in motion again, and tests it."""
        readiness, engine = self._readiness, self._engine
        reason = self._progress.judge(
            stats, engine.tested, seconds=seconds, test_seconds=engine.seconds_open
        )
        if self._watched and self._progress.has_moved:
            readiness.is_alive()
        if readiness.state == "ready" and reason:
            readiness.stuck(reason)
            log.error("qwen_service: stuck: %s", reason)
        elif readiness.state == "stuck":
            if reason is None:
                readiness.ready()
                log.info("qwen_service: no longer stuck")
            else:
                readiness.reason = reason
        if readiness.state in ("ready", "stuck") and readiness.facts:
            engine.run_if_idle(readiness.facts)

    def _tell(self, stats: Stats, now: float) -> None:
        rate = (stats.tokens - self._told_tokens) / (now - self._told_at)
        self._told_tokens, self._told_at = stats.tokens, now
        line = self._line(stats, rate)
        is_stuck = self._readiness.state == "stuck"
        self._readiness.describe(f"Stuck: {self._readiness.reason}; {line}" if is_stuck else line)

    def _work(self) -> tuple[float, int]:
        times = self._process.cpu_times()
        return times.user + times.system, self._process.io_counters().read_bytes

    def _loads(self, before: tuple[float, int], now: tuple[float, int], seconds: float) -> bool:
        return now[0] - before[0] > BUSY_SHARE * seconds or now[1] > before[1]

    def _line(self, stats: Stats, rate: float) -> str:
        facts = self._readiness.facts
        memory = stats.memory_bytes or self._process.memory_info().rss
        verb = "Draining" if self._readiness.state == "draining" else "Serving"
        return (
            f"{verb} {self._settings.model_name} ({self._settings.release}) "
            f"on {facts.device if facts else self._settings.device}: "
            f"{stats.running} running, {stats.waiting} waiting, "
            f"{rate:.1f} tokens/s, {memory // MEBIBYTE} MiB"
        )

    async def drain(self) -> None:
        """Lets running requests end, as long as the settings allow, then ends the engine."""
        self._readiness.draining(self._settings.drain_seconds)
        self._engine.drain()
        deadline = time.monotonic() + self._settings.drain_seconds
        while self._is_busy() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self._engine.stop()

    def _is_busy(self) -> bool:
        stats = self._engine.stats()
        return stats.running + stats.waiting > 0


def _first(kind: str) -> Generation | Embedding:
    name = "first-completion"
    if kind == "embedding":
        return Embedding(name, Text("你好"))
    prompt = Chat(({"role": "user", "content": "你好"},))
    return Generation(name, prompt, Sampling(max_tokens=4, temperature=0))
