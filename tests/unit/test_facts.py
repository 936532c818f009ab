from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_deploy import facts, release
from qwen_deploy.facts import Answer, Disk
from tests.fakes import MANIFEST, answers, deployment, facts_of, raw_facts, release_of

RELEASE = release_of()


def test_a_question_about_a_release_asks_for_all_that_is_managed() -> None:
    asked = facts.question(
        (RELEASE,),
        service=deployment(service={"port": 8100}).service,
        python="/usr/bin/python3.12",
        host_paths=("/etc/qwen-deploy",),
        trees=("/srv/a", "/srv/b"),
        packages=facts.PACKAGES,
    )
    assert set(asked["paths"]) == {*RELEASE.managed, "/etc/qwen-deploy"}
    assert {key: value for key, value in asked.items() if key != "paths"} == {
        "trees": ["/srv/a", "/srv/b"],
        "disks": ["/opt/qwen-deploy", "/var/lib/qwen-deploy"],
        "port": 8100,
        "python": "/usr/bin/python3.12",
        "units": ["qwen.service", "qwen.socket"],
        "packages": ["ca-certificates", "git", "git-lfs"],
        "model": "",
        "probe": "completion",
    }


def test_a_model_is_asked_for_by_its_folder() -> None:
    asked = facts.question((), service=None, model="Qwen/Qwen2.5-7B-Instruct")
    assert asked["model"] == "Qwen--Qwen2.5-7B-Instruct"


def test_what_somebody_else_wrote_is_no_manifest_of_ours() -> None:
    told = facts_of(models=[{"schema": 99}, json.loads(MANIFEST.to_json())])
    assert told.models == (MANIFEST,)


def test_a_question_without_a_release_asks_only_what_is_served() -> None:
    asked = facts.question((), service=None, probe="none")
    assert asked == {
        "paths": [],
        "trees": [],
        "disks": ["/opt/qwen-deploy", "/var/lib/qwen-deploy"],
        "port": 0,
        "python": "python3",
        "units": ["qwen.service", "qwen.socket"],
        "packages": [],
        "model": "",
        "probe": "none",
    }


def test_an_answer_becomes_values() -> None:
    read = facts_of(keys=[["default", "1" * 64]], current=RELEASE.id, service=answers(RELEASE.id))
    assert read.python == (3, 11, 2)
    assert read.runtime_python == (3, 11)
    assert read.os_name == "Debian GNU/Linux 12 (bookworm)"
    assert read.disks[release.ROOT] == Disk("/", 50_000_000_000)
    assert read.keys == (("default", "1" * 64),)
    assert read.answer == Answer(200, RELEASE.id, "ready", True, "")
    assert read.unit_state == "inactive"


def test_a_host_without_os_release_and_python_is_still_read() -> None:
    read = facts_of(os={}, runtime_python=None, units={})
    assert (read.os_id, read.os_name) == ("", "unknown")
    assert read.runtime_python is None
    assert read.unit_state == "unknown"


SAID: dict[str, tuple[dict[str, Any], Answer]] = {
    "nobody answers": (
        {"status": 0, "ready": "[Errno 111] Connection refused"},
        Answer(0, None, "[Errno 111] Connection refused", None, ""),
    ),
    "loading": (
        {"status": 503, "ready": {"status": "loading", "reason": "", "release": "r-1"}},
        Answer(503, "r-1", "loading", None, ""),
    ),
    "failed with a reason": (
        {"status": 503, "ready": {"status": "failed", "reason": "no memory", "release": "r-1"}},
        Answer(503, "r-1", "no memory", None, ""),
    ),
    "a stranger": (
        {"status": 200, "ready": "<html>"},
        Answer(200, None, "<html>", None, ""),
    ),
    "nothing": ({"status": 200, "ready": None}, Answer(200, None, "None", None, "")),
    "a completion in OpenAI's error": (
        answers("r-1", completion=False),
        Answer(200, "r-1", "ready", False, "out of memory"),
    ),
    "a completion that timed out": (
        answers("r-1") | {"completion": {"ok": False, "error": "timed out"}},
        Answer(200, "r-1", "ready", False, "timed out"),
    ),
    "a completion in a stranger's error": (
        answers("r-1") | {"completion": {"ok": False, "error": {"error": "busy"}}},
        Answer(200, "r-1", "ready", False, "{'error': 'busy'}"),
    ),
}


@pytest.mark.parametrize(("said", "answer"), SAID.values(), ids=SAID)
def test_what_the_service_says_is_understood(said: dict[str, Any], answer: Answer) -> None:
    assert facts_of(service=said).answer == answer


@pytest.mark.parametrize(
    ("answer", "is_ready"),
    [
        (Answer(200, "r-1", "", True, ""), True),
        (Answer(200, "r-1", "", None, ""), True),
        (Answer(200, "r-1", "", False, "x"), False),
        (Answer(503, "r-1", "", None, ""), False),
    ],
)
def test_only_an_answer_without_a_failed_completion_is_ready(
    answer: Answer, is_ready: bool
) -> None:
    assert answer.is_ready is is_ready


def test_proven_releases_come_in_the_order_of_their_last_proof() -> None:
    audit = [
        {"release": "r-1", "proven": True},
        {"release": "r-2", "proven": True},
        {"release": "r-3", "proven": False},
        {"release": "r-gone", "proven": True},
        {"release": "r-1", "proven": True},
        {"action": "down"},
    ]
    there = [{"id": name} for name in ("r-1", "r-2", "r-3")]
    assert facts_of(audit=audit, releases=there).proven == ("r-2", "r-1")


def test_the_fake_host_prints_what_a_host_prints() -> None:
    assert facts.parse(json.dumps(raw_facts())) == facts_of()
