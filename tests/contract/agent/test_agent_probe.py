from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from qwen_weights.__main__ import main
from qwen_weights.pull import order as orders
from qwen_weights.pull.probe import probe
from qwen_weights.sources.entries import EntriesFile

from tests.contract.agent.loopback import answering, files, serving, silent

pytestmark = pytest.mark.contract

CONTENTS = {"large": b"x" * 3_000_000, "small": b"x"}
MANIFEST = {
    "schema": 1,
    "model": "Qwen/Tiny",
    "revision": "a" * 40,
    "artifacts": [
        {"path": name, "size": len(content), "sha256": str(number) * 64}
        for number, (name, content) in enumerate(CONTENTS.items())
    ],
}


def write(directory: Path, *sources: dict[str, Any]) -> None:
    limits = {"connections": 4, "retry_seconds": 5, "stall_seconds": 5, "reserve_bytes": 0}
    order = {"schema": 1, "root": "/nowhere", "manifests": [MANIFEST], "limits": limits}
    (directory / "order.json").write_text(json.dumps(order))
    document = {"schema": 1, "authority": None, "sources": sources}
    (directory / "sources.json").write_text(json.dumps(document))


def web(name: str, url: str, **more: Any) -> dict[str, Any]:
    return {"kind": "http", "name": name, "url": f"{url}/{{path}}", **more}


def measured(directory: Path, seconds: float) -> list[dict[str, Any]]:
    entries = EntriesFile(directory).read().sources
    return probe(orders.read(directory), entries, seconds=seconds)


def test_every_source_of_the_wan_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with serving(files(CONTENTS)) as good, serving(answering(401)) as gated:
        write(
            tmp_path,
            {"kind": "folder", "name": "host:/x", "path": "/x"},
            web("good", good.url),
            web("small", good.url, paths=["small"]),
            web("gated", gated.url),
            web("gone", gone),
            web("none", good.url, paths=[]),
        )
        assert main(["probe", "--dir", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["sources"]}
    assert list(rows) == ["good", "small", "gated", "gone", "none"]
    assert [row["ok"] for row in rows.values()] == [True, True, False, False, False]
    assert rows["good"]["rate"] > 0 and rows["good"]["seconds_to_first_byte"] >= 0
    assert rows["good"]["error"] is None and rows["gated"]["rate"] is None
    assert "gated wants a token for large" in rows["gated"]["error"]
    assert rows["gone"]["error"] == "connection refused"
    targets = {target: headers.get("Range") for target, headers in good.asked}
    assert targets == {"/large": "bytes=0-2097151", "/small": None}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["order.json", "sources.json"]


def test_a_source_that_does_not_answer_in_time_is_left_behind(tmp_path: Path) -> None:
    with serving(silent) as server:
        write(tmp_path, web("silent", server.url))
        (row,) = measured(tmp_path, 0.1)
    assert not row["ok"]
    assert row["error"] in ("no answer in time", "it sent nothing for too long")


def test_a_slow_source_is_measured_by_what_came(tmp_path: Path) -> None:
    with serving(files(CONTENTS, stop_at=500_000, holds=True)) as server:
        write(tmp_path, web("slow", server.url))
        (row,) = measured(tmp_path, 0.3)
    assert row["ok"] and row["rate"] > 0
