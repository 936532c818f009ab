"""What a meter makes of the tokens of a request, and what a scrape says of engine and service."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from qwen_service.engine import ModelFacts, Stats
from qwen_service.lifecycle.notify import Notifier
from qwen_service.lifecycle.readiness import Readiness
from qwen_service.middleware.metrics import Meter, Metrics
from qwen_service.settings import load

from tests.fake_engine import FakeEngine

SETTINGS = load({"QWEN_MODEL_DIR": "/m/tiny", "QWEN_AUTH": "none", "QWEN_RELEASE": "r-1"})
FACTS = ModelFacts("cuda", "bfloat16", context_tokens=100, kv_tokens=5000)
ROUTE = "/v1/chat/completions"


class Scene:
    def __init__(self) -> None:
        self.now = 100.0
        self.engine = FakeEngine()
        self.readiness = Readiness(Notifier(None), model="tiny", clock=lambda: self.now)
        self.metrics = Metrics(SETTINGS, self.engine, self.readiness, lambda: self.now)

    def meter(self) -> Meter:
        return self.metrics.meter(lambda: ROUTE)

    def told(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels or None)

    def names(self) -> set[str]:
        text = generate_latest(self.metrics.registry).decode()
        families = text_string_to_metric_families(text)
        return {sample.name for family in families for sample in family.samples}


def test_the_first_token_and_the_gaps_between_the_others_are_measured_by_choice() -> None:
    scene = Scene()
    meter = scene.meter()
    meter.accepted(7)
    scene.now = 103.0
    meter.token(0, 100.5)
    meter.token(1, 100.6)
    meter.token(0, 100.52)
    # Two that came together count as two, at the same distance.
    meter.token(1, 100.7, 2)
    meter.ended(6)
    assert meter.first_token_seconds == pytest.approx(0.5)
    assert meter.close(200, "anna") == pytest.approx(3)
    assert scene.told("qwen_time_to_first_token_seconds_sum", route=ROUTE) == pytest.approx(0.5)
    assert scene.told("qwen_time_to_first_token_seconds_count", route=ROUTE) == 1
    assert scene.told("qwen_inter_token_seconds_count", route=ROUTE) == 3
    assert scene.told("qwen_inter_token_seconds_sum", route=ROUTE) == pytest.approx(0.12)
    assert scene.told("qwen_request_seconds_sum", route=ROUTE) == pytest.approx(3)
    assert scene.told("qwen_prompt_tokens_total", route=ROUTE, key="anna") == 7
    assert scene.told("qwen_completion_tokens_total", route=ROUTE, key="anna") == 6


def test_an_answer_that_nobody_waited_for_still_cost_its_tokens() -> None:
    scene = Scene()
    meter = scene.meter()
    meter.accepted(7)
    for step in range(5):
        meter.token(0, 100.0 + step)
    meter.close(499, "-")
    assert scene.told("qwen_completion_tokens_total", route=ROUTE, key="-") == 5
    assert scene.told("qwen_requests_total", route=ROUTE, code="499", key="-") == 1


def test_a_request_without_tokens_measures_none() -> None:
    scene = Scene()
    scene.meter().close(401, "-")
    assert scene.told("qwen_time_to_first_token_seconds_count", route=ROUTE) is None
    assert scene.told("qwen_prompt_tokens_total", route=ROUTE, key="-") is None


def test_engine_and_service_are_asked_at_the_scrape() -> None:
    scene = Scene()
    stats = Stats(running=2, waiting=3, tokens=40, ticks=50, memory_bytes=6000, kv_tokens=700)
    scene.engine.stats = lambda: stats  # type: ignore[method-assign]
    assert scene.told("qwen_kv_tokens_room") is None
    assert scene.told("qwen_load_seconds") is None
    scene.readiness.facts = FACTS
    scene.now = 112.5
    scene.readiness.ready()
    scene.readiness.tested.passed = 4
    expected = {
        "qwen_requests_running": 2,
        "qwen_requests_waiting": 3,
        "qwen_requests_running_max": SETTINGS.max_batch,
        "qwen_requests_waiting_max": SETTINGS.max_queue,
        "qwen_generated_tokens_total": 40,
        "qwen_engine_ticks_total": 50,
        "qwen_gpu_memory_bytes": 6000,
        "qwen_kv_tokens_used": 700,
        "qwen_kv_tokens_room": 5000,
        "qwen_load_seconds": 12.5,
    }
    assert {name: scene.told(name) for name in expected} == expected
    assert scene.told("qwen_self_tests_total", outcome="passed") == 4
    assert scene.told("qwen_state", qwen_state="ready") == 1
    assert scene.told("qwen_state", qwen_state="stuck") == 0
    scene.engine.stats = lambda: replace(stats, memory_bytes=None)  # type: ignore[method-assign]
    assert scene.told("qwen_gpu_memory_bytes") is None


def test_what_serves_is_told_in_one_line() -> None:
    scene = Scene()
    scene.readiness.facts = FACTS
    text = generate_latest(scene.metrics.registry).decode()
    (line,) = [line for line in text.splitlines() if line.startswith("qwen_build_info{")]
    for label in ('release="r-1"', 'model="tiny"', 'engine="transformers"', 'dtype="bfloat16"'):
        assert label in line


def test_names_follow_the_conventions_and_the_process_is_there() -> None:
    names = Scene().names()
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total"} <= names
    assert all(name.startswith(("qwen_", "process_")) for name in names)
