"""What Prometheus may ask: counters and histograms of requests, and what engine and process say.

Label values are bounded: templates of routes, status codes, names of listed keys. Knows no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    StateSetMetricFamily,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from qwen_service import __version__
from qwen_service.engine import Engine
from qwen_service.lifecycle.readiness import STATES, Readiness, SelfTests
from qwen_service.settings import Settings

# From a small model's step on a GPU to a large one's on an old CPU.
TOKEN_BUCKETS = (
    *(0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 2.5, 5.0),
)
FIRST_TOKEN_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0),
)
REQUEST_BUCKETS = (
    *(0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0),
    1800.0,
)
NOBODY = "-"
# A second series for every counter, which nobody asks for, would cost a fifth of each scrape.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        readiness: Readiness,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_State(settings, engine, readiness))
        self.requests = Counter(
            "qwen_requests",
            "Requests that were answered or left, by template of the route and name of the key.",
            ["route", "code", "key"],
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "qwen_prompt_tokens",
            "Tokens of the prompts that were accepted.",
            ["route", "key"],
            registry=self.registry,
        )
        self.completion_tokens = Counter(
            "qwen_completion_tokens",
            "Tokens of the answers, counted when a request ends.",
            ["route", "key"],
            registry=self.registry,
        )
        self.seconds = self._histogram(
            "qwen_request_seconds",
            "From a request's head to the end of its answer.",
            REQUEST_BUCKETS,
        )
        self.first_token = self._histogram(
            "qwen_time_to_first_token_seconds",
            "From a request's head to the first token of its answer.",
            FIRST_TOKEN_BUCKETS,
        )
        self.inter_token = self._histogram(
            "qwen_inter_token_seconds", "Between two tokens of one answer.", TOKEN_BUCKETS
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ["route"], buckets=buckets, registry=self.registry)

    def meter(self, route: Callable[[], str], *, is_timed: bool = True) -> Meter:
        return Meter(self, route, is_timed=is_timed)


class Meter:
    """One request as it is measured; `route` is asked once the request has found it."""

    def __init__(self, metrics: Metrics, route: Callable[[], str], *, is_timed: bool) -> None:
        self._metrics = metrics
        self._is_timed = is_timed
        self._route = route
        self._began = metrics.clock()
        self._last: dict[int, float] = {}
        self._inter_token: Histogram | None = None
        self._prompt_tokens = 0
        self._seen_tokens = 0
        self._told_tokens: int | None = None
        # None until a token came.
        self.first_token_seconds: float | None = None

    def accepted(self, prompt_tokens: int) -> None:
        """A prompt was read; once for each prompt of the request."""
        self._prompt_tokens += prompt_tokens

    def token(self, index: int, at: float, count: int = 1) -> None:
        """`count` tokens of a choice arrived together, `at` by the clock that never jumps."""
        self._seen_tokens += count
        last = self._last.get(index)
        self._last[index] = at
        if last is not None and self._inter_token is not None:
            gap = (at - last) / count
            for _ in range(count):
                self._inter_token.observe(gap)
            return
        if self._inter_token is None:
            route = self._route()
            self._inter_token = self._metrics.inter_token.labels(route)
            self.first_token_seconds = at - self._began
            self._metrics.first_token.labels(route).observe(self.first_token_seconds)

    def ended(self, completion_tokens: int) -> None:
        """The tokens of the whole answer, those without a text included."""
        self._told_tokens = completion_tokens

    @property
    def tokens(self) -> tuple[int, int]:
        """Of prompts and of answers."""
        return self._prompt_tokens, max(self._told_tokens or 0, self._seen_tokens)

    @property
    def seconds(self) -> float:
        return self._metrics.clock() - self._began

    def close(self, code: int, key: str) -> float:
        """Counts the request and returns how long it took."""
        seconds = self.seconds
        route = self._route()
        self._metrics.requests.labels(route, str(code), key).inc()
        if self._is_timed:
            self._metrics.seconds.labels(route).observe(seconds)
        prompt, completion = self.tokens
        if prompt or completion:
            self._metrics.prompt_tokens.labels(route, key).inc(prompt)
            self._metrics.completion_tokens.labels(route, key).inc(completion)
        return seconds


class _State(Collector):
    """Engine and readiness at the moment of the question; nothing here takes long."""

    def __init__(self, settings: Settings, engine: Engine, readiness: Readiness) -> None:
        self._settings = settings
        self._engine = engine
        self._readiness = readiness

    def collect(
        self,
    ) -> Iterable[
        CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily | StateSetMetricFamily
    ]:
        yield self._build()
        states: dict[str, bool] = {name: name == self._readiness.state for name in STATES}
        yield StateSetMetricFamily("qwen_state", "The state of the service.", states)
        yield from self._load()
        yield from self._work()
        yield from _self_test(self._readiness.tested)

    def _build(self) -> InfoMetricFamily:
        settings, facts = self._settings, self._readiness.facts
        labels = {
            "version": __version__,
            "release": settings.release,
            "model": settings.model_name,
            "revision": settings.model_revision,
            "engine": settings.engine,
            "device": facts.device if facts else settings.device,
            "dtype": facts.dtype if facts else settings.dtype,
        }
        return InfoMetricFamily("qwen_build", "What serves.", labels)

    def _load(self) -> Iterable[GaugeMetricFamily]:
        seconds = self._readiness.load_seconds
        if seconds is not None:
            text = "From the start to the first completion."
            yield GaugeMetricFamily("qwen_load_seconds", text, seconds)

    def _work(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        stats, facts, settings = self._engine.stats(), self._readiness.facts, self._settings
        yield _gauge("qwen_requests_running", "Requests that generate.", stats.running)
        yield _gauge("qwen_requests_waiting", "Requests that wait for a place.", stats.waiting)
        yield _gauge("qwen_requests_running_max", "Places in the batch.", settings.max_batch)
        yield _gauge("qwen_requests_waiting_max", "Places in the queue.", settings.max_queue)
        yield _counter("qwen_generated_tokens", "Tokens that the engine generated.", stats.tokens)
        yield _counter("qwen_engine_ticks", "Steps of the engine, idle ones too.", stats.ticks)
        yield _gauge(
            "qwen_kv_tokens_used", "Tokens whose keys and values are held.", stats.kv_tokens
        )
        if facts and facts.kv_tokens is not None:
            yield _gauge("qwen_kv_tokens_room", "Tokens that there is room for.", facts.kv_tokens)
        if stats.memory_bytes is not None:
            text = "Memory of the GPUs that this process holds."
            yield _gauge("qwen_gpu_memory_bytes", text, stats.memory_bytes)


def _self_test(tested: SelfTests) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
    runs = CounterMetricFamily("qwen_self_tests", "Self-tests, by outcome.", labels=["outcome"])
    runs.add_metric(["passed"], tested.passed)
    runs.add_metric(["failed"], tested.failed)
    yield runs
    yield _gauge("qwen_self_test_seconds", "How long the last one took.", tested.last_seconds)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value)
