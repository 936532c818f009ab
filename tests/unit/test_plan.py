from __future__ import annotations

import json
from typing import Any

import pytest
from qwen_weights import manifest
from qwen_weights.manifest import Artifact

from qwen_deploy import facts, plan, release
from qwen_deploy.plan import Plan, Step
from tests.fakes import (
    ACTIVE_SOCKET,
    ACTIVE_UNIT,
    FAILED_UNIT,
    MANIFEST,
    MODEL,
    answers,
    deployment,
    digests,
    lying,
    raw_facts,
    release_of,
    serving,
)

DEPLOYMENT = deployment()
RELEASE = release_of()
WANTED = {**release.host_state(DEPLOYMENT), **RELEASE.managed}
OLD = "r-0badcafe"
OTHER_MODEL = manifest.make("Qwen/Other", MANIFEST.artifacts, "c" * 40)
UNITS = {"qwen.service": ACTIVE_UNIT, "qwen.socket": ACTIVE_SOCKET}


def plan_for(raw: dict[str, Any]) -> Plan:
    return plan.make("gpu-1", facts.parse(json.dumps(raw)), RELEASE, WANTED, writes_keys=False)


def served(**changes: Any) -> dict[str, Any]:
    return serving(RELEASE, DEPLOYMENT, **changes)


def without(path: str) -> dict[str, str]:
    return {key: value for key, value in digests(RELEASE, DEPLOYMENT).items() if key != path}


def test_a_bare_host_gets_everything() -> None:
    made = plan_for(raw_facts(packages={"ca-certificates": True, "git": False, "git-lfs": False}))
    assert made.steps == (
        Step("host", "install git, git-lfs"),
        Step("host", "create the system user and directories"),
        Step("runtime", "build the cpu environment"),
        Step("runtime", "write the pip configuration"),
        Step("weights", f"bring 0.0 MB of {MODEL}"),
        Step("service", f"release none -> {RELEASE.id}"),
    )
    assert (made.host, made.release, made.previous) == ("gpu-1", RELEASE.id, None)
    assert made.transfer_bytes == MANIFEST.total_bytes
    assert not made.must_restart
    assert made.expired == ()


def test_a_host_that_is_as_wanted_needs_nothing() -> None:
    made = plan_for(served())
    assert made.steps == ()
    assert made.is_unchanged
    assert not made.must_restart
    assert made.transfer_bytes == 0


@pytest.mark.parametrize("path", sorted(WANTED), ids=lambda path: path.replace(RELEASE.id, "id"))
def test_nothing_that_is_managed_drifts_unnoticed(path: str) -> None:
    # Facts take the current release from this very link.
    changes = {"current": None} if path == f"{release.ROOT}/current" else {}
    assert plan_for(served(digests=without(path), **changes)).steps


DRIFTS = {
    "unit": ("/etc/systemd/system/qwen.service", "service"),
    "port": ("/etc/systemd/system/qwen.socket.d/listen.conf", "service"),
    "environment": (f"{RELEASE.directory}/environment", "service"),
    "code": (f"{RELEASE.directory}/service/qwen_service/app.py", "service"),
    "link to the venv": (f"{RELEASE.directory}/venv", "service"),
    "venv": (f"{RELEASE.venv_dir}/.complete", "runtime"),
    "pip configuration": (release.PIP_CONF, "runtime"),
    "directory": ("/etc/qwen-deploy", "host"),
}


@pytest.mark.parametrize(("path", "stage"), DRIFTS.values(), ids=DRIFTS)
def test_what_drifted_is_repaired_by_one_step(path: str, stage: str) -> None:
    made = plan_for(served(digests={**digests(RELEASE, DEPLOYMENT), path: "0" * 64}))
    assert [step.stage for step in made.steps] == [stage]
    assert stage != "service" or made.steps[0].summary == f"repair {path}"


UNIT_STATES: dict[str, tuple[dict[str, Any], str]] = {
    "stopped": (
        {
            "units": UNITS | {"qwen.service": ACTIVE_UNIT | {"ActiveState": "inactive"}},
            "service": None,
        },
        "start: it is inactive",
    ),
    "failed": (
        {"units": UNITS | {"qwen.service": FAILED_UNIT}, "service": None},
        "start: it is failed",
    ),
    "without its socket": (
        {"units": UNITS | {"qwen.socket": ACTIVE_SOCKET | {"ActiveState": "inactive"}}},
        "restart: it is not set up to start with the host",
    ),
    "not enabled": (
        {"units": UNITS | {"qwen.service": ACTIVE_UNIT | {"UnitFileState": "disabled"}}},
        "restart: it is not set up to start with the host",
    ),
    "not reloaded": (
        {"units": UNITS | {"qwen.service": ACTIVE_UNIT | {"NeedDaemonReload": "yes"}}},
        "restart: it is not set up to start with the host",
    ),
    "not ready": (
        {"service": {"status": 503, "ready": {"status": "failed", "reason": "no memory"}}},
        "restart: no memory",
    ),
    "without completion": (
        {"service": answers(RELEASE.id, completion=False)},
        "restart: out of memory",
    ),
    "of an older release": ({"service": answers(OLD)}, f"restart: it still serves {OLD}"),
}


@pytest.mark.parametrize(("changes", "summary"), UNIT_STATES.values(), ids=UNIT_STATES)
def test_a_unit_that_does_not_serve_the_release_is_restarted(
    changes: dict[str, Any], summary: str
) -> None:
    made = plan_for(served(**changes))
    assert made.must_restart
    assert made.steps == (Step("unit", summary),)


def test_a_unit_that_starts_as_after_a_reboot_only_needs_time() -> None:
    starting = ACTIVE_UNIT | {"ActiveState": "activating", "SubState": "start", "NRestarts": "0"}
    loading = {"status": "loading", "reason": "loading", "release": RELEASE.id}
    units = UNITS | {"qwen.service": starting}
    made = plan_for(served(units=units, service={"status": 503, "ready": loading}))
    assert made.steps == (Step("unit", "wait until it is ready"),)
    assert not made.must_restart


def test_another_release_replaces_the_current_one() -> None:
    made = plan_for(served(current=OLD, service=answers(OLD)))
    assert made.steps == (Step("service", f"release {OLD} -> {RELEASE.id}"),)
    assert made.previous == OLD


BEFORE: dict[str, tuple[dict[str, Any], str]] = {
    "nothing but the id": ({}, ""),
    "port": (
        release_of(service={"port": 8100}).content,
        " (listen 0.0.0.0:8100 -> 0.0.0.0:8000)",
    ),
    "settings": (
        release_of(service={"max_batch": 3, "max_queue": 7}).content,
        " (max_batch 3 -> 32; max_queue 7 -> 128)",
    ),
    "a setting that had no value": (
        {"settings": RELEASE.content["settings"] | {"QWEN_MAX_BATCH": ""}},
        " (max_batch default -> 32)",
    ),
    "a setting that has none now": (
        release_of(service={"threads": 2}).content,
        " (threads 2 -> default)",
    ),
    "a setting that is new": (
        {"settings": {k: v for k, v in RELEASE.content["settings"].items() if k != "QWEN_DTYPE"}},
        " (dtype default -> auto)",
    ),
    "model": (
        release.make(DEPLOYMENT, OTHER_MODEL, "cpu").content,
        f" (model Qwen/Other -> {MANIFEST.model}; revision {'c' * 40} -> {MANIFEST.revision})",
    ),
    "accelerator": (
        release.make(DEPLOYMENT, MANIFEST, "cuda").content,
        " (accelerator cuda -> cpu; other packages)",
    ),
    "interpreter": (
        {"python": "/usr/bin/python3.12"},
        f" (python /usr/bin/python3.12 -> {RELEASE.python})",
    ),
    "lock": ({"lock": "0" * 64}, " (other packages)"),
    "service files": (
        {"files": RELEASE.content["files"] | {"service/qwen_service/app.py": "0" * 64}},
        " (another version of the service)",
    ),
    "all at once": (
        {"listen": "127.0.0.1:1", "lock": "0" * 64, "files": {}},
        " (listen 127.0.0.1:1 -> 0.0.0.0:8000; other packages; another version of the service)",
    ),
}


@pytest.mark.parametrize(("content", "changes"), BEFORE.values(), ids=BEFORE)
def test_a_new_release_is_told_with_what_a_person_changed(
    content: dict[str, Any], changes: str
) -> None:
    there = [lying(RELEASE, made_at=2.0, id="r-newer"), lying(RELEASE, made_at=1.0, id=OLD)]
    there[1] |= content
    made = plan_for(served(current=OLD, releases=there, service=answers(OLD)))
    assert made.steps == (Step("service", f"release {OLD} -> {RELEASE.id}{changes}"),)


def test_weights_without_a_manifest_are_proven_again() -> None:
    made = plan_for(served(digests=without(f"{RELEASE.model_dir}/manifest.json")))
    assert [step.stage for step in made.steps] == ["weights"]
    assert made.brings == (MANIFEST,)


def test_a_shortened_artifact_is_brought_again() -> None:
    made = plan_for(served(trees={RELEASE.model_dir: {"config.json": 99}}))
    assert [step.stage for step in made.steps] == ["weights"]
    assert made.transfer_bytes == MANIFEST.total_bytes


def test_weights_that_were_found_damaged_are_mended() -> None:
    there = {"config.json": 100, "manifest.damage.json": 40}
    made = plan_for(served(trees={RELEASE.model_dir: there}))
    assert made.steps == (Step("weights", f"mend {MODEL}: `weights verify` found it damaged"),)
    assert made.brings == (MANIFEST,)


def test_what_an_unfinished_transfer_left_is_not_brought_again() -> None:
    made = plan_for(raw_facts(partials={"a" * 64: 60, "f" * 64: 1_000}))
    assert made.transfer_bytes == 40
    assert Step("weights", f"bring 0.0 MB of {MODEL} (0.0 MB are there)") in made.steps


def test_what_another_revision_of_the_model_holds_is_not_brought_again() -> None:
    other = manifest.make(MODEL, [Artifact("config.json", 100, "a" * 64)], "c" * 40)
    made = plan_for(raw_facts(models=[json.loads(other.to_json())]))
    assert (made.brings, made.transfer_bytes) == ((MANIFEST,), 0)
    assert Step("weights", f"put {MODEL} together from what is there") in made.steps


def test_a_shortened_artifact_of_the_revision_itself_is_no_copy_of_it() -> None:
    same = json.loads(MANIFEST.to_json())
    made = plan_for(served(trees={RELEASE.model_dir: {"config.json": 99}}, models=[same]))
    assert made.transfer_bytes == MANIFEST.total_bytes


def releases(count: int) -> list[dict[str, Any]]:
    """`r-1` is the oldest; every two share an environment."""
    return [
        {"id": f"r-{number}", "made_at": float(number), "venv": f"v-{number // 2}"}
        for number in range(1, count + 1)
    ]


def test_the_oldest_releases_and_their_environments_expire() -> None:
    made = plan_for(served(releases=releases(9), current="r-9", service=answers("r-9")))
    kept = plan.KEEP_RELEASES
    assert made.expired == (
        *(f"/opt/qwen-deploy/releases/r-{number}" for number in range(9 - kept, 0, -1)),
        "/opt/qwen-deploy/venvs/v-0",
        "/opt/qwen-deploy/venvs/v-1",
    )


def test_a_release_that_could_be_needed_never_expires() -> None:
    there = releases(9)
    there[0]["venv"] = RELEASE.venv_id
    there[2] |= {"id": RELEASE.id}
    audit = [{"release": name, "proven": True} for name in ("r-4", "r-2", "r-1")]
    made = plan_for(served(releases=there, current="r-1", audit=audit))
    assert made.expired == ("/opt/qwen-deploy/releases/r-4",)


def test_keys_to_write_are_a_step() -> None:
    read = facts.parse(json.dumps(served()))
    made = plan.make("gpu-1", read, RELEASE, WANTED, writes_keys=True)
    assert made.steps == (Step("keys", "write API keys"),)
