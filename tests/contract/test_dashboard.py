"""The Grafana dashboard asks for nothing that a real scrape does not tell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.running_service import MODEL, RunningService

pytestmark = pytest.mark.contract

DASHBOARD = Path(__file__).parents[2] / "service/grafana/qwen.json"
# Told only where there is a GPU.
OF_GPUS = {"qwen_gpu_memory_bytes"}
METRIC = re.compile(r"\b((?:qwen|process)_[a-z_]+)(?:\{([^}]*)\})?")
# What Prometheus itself adds to every series.
ADDED = {"job", "instance"}


def expressions(value: Any) -> Iterator[str]:
    """Every query of panels, variables and annotations."""
    if isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, str) and name in ("expr", "query", "definition"):
                yield item
            else:
                yield from expressions(item)
    elif isinstance(value, list):
        for item in value:
            yield from expressions(item)


def asked() -> Iterator[tuple[str, set[str]]]:
    """Names of metrics, each with the labels by which it is chosen or summed."""
    for text in expressions(json.loads(DASHBOARD.read_text("utf-8"))):
        for name, chosen in METRIC.findall(re.sub(r"qwen_state\}\}", "", text)):
            by = re.findall(r"by \(([^)]*)\)", text)
            labels = {label.strip() for one in by for label in one.split(",")}
            yield name, labels | set(re.findall(r"(\w+)[!=]=?~?\"", chosen))


@pytest.fixture(scope="module")
def told(service: RunningService, api_key: str) -> dict[str, set[str]]:
    """Labels by name of a scrape, once somebody has asked something."""
    headers = {"authorization": f"Bearer {api_key}"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "你好"}]}
    with service.client(headers=headers) as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        text = client.get("/metrics").text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_metric_of_the_dashboard_is_told_with_its_labels(told: dict[str, set[str]]) -> None:
    wanted = list(asked())
    assert len(wanted) > 30
    missing = {name for name, _ in wanted} - told.keys()
    assert missing <= OF_GPUS
    wrong = [
        (name, labels - told[name] - ADDED)
        for name, labels in wanted
        if name in told and not labels <= told[name] | ADDED
    ]
    assert not wrong


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
