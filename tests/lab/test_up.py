"""One bare host to a proven service, and everything one does with it afterwards.

The module's tests share the host that the first `up` converged and run in their order.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pexpect
import pytest

from tests.fixture_model.dialogues import answer_to
from tests.lab import Host, Lab, service
from tests.lab.controller import PROGRAM, Controller

pytestmark = pytest.mark.lab

HELLO = "你好"
STATUS_HEADER = ("HOST", "RELEASE", "UNIT", "READY", "MODEL", "UPTIME", "MEMORY", "GPU")
# Wherever a program of ours writes, and wherever a careless one might.
PLACES = (
    *("/etc", "/opt/qwen-deploy/releases", "/var/lib", "/var/log", "/var/cache/qwen"),
    *("/run", "/root", "/tmp"),
)


@dataclass
class Served:
    """A host that serves, who made it so, and the key shown on the way."""

    host: Host
    controller: Controller
    events: list[dict[str, Any]]
    before: dict[str, str]
    releases: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return next(str(event["key"]) for event in self.events if event["event"] == "key_created")

    def finished(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        return next(event for event in events if event["event"] == "host_finished")


@pytest.fixture(scope="module")
def served(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    (host,) = lab.pristine(1)
    before = service.snapshot(host)
    controller = Controller(lab, tmp_path_factory.mktemp("operator"))
    controller.configure(host)
    events = controller.events("up", "--yes")
    yield Served(host, controller, events, before, [service.current(host)])


def test_fresh_up_serves_the_release_it_names(served: Served) -> None:
    finished = served.finished(served.events)
    assert finished["outcome"] == "changed"
    assert finished["release"] == served.releases[0] == service.ready(served.host)["release"]
    assert service.unit(served.host)["ActiveState"] == "active"
    assert 8000 in served.host.listening_ports()


def test_the_official_client_gets_the_words_from_outside(served: Served) -> None:
    assert service.answer(served.host, served.key, HELLO) == answer_to(HELLO)


def test_a_stranger_without_the_key_gets_nothing(served: Served) -> None:
    with pytest.raises(openai.AuthenticationError):
        service.answer(served.host, "sk-somebody-elses", HELLO)


def test_the_host_was_set_up_as_the_readme_says(served: Served) -> None:
    host = served.host
    assert "qwen:" in host.read("/etc/passwd")
    assert host.run(["git", "config", "--system", "filter.lfs.required"]).stdout.strip() == "true"
    assert host.run(["stat", "-c", "%a %U %G", "/etc/qwen-deploy/keys"]).stdout == "640 root qwen\n"
    assert host.run(["stat", "-c", "%a %U", "/etc/qwen-deploy/operator.key"]).stdout == "600 root\n"
    conf = host.read("/var/lib/qwen-deploy/.config/pip/pip.conf")
    assert "index-url = " in conf
    python = "/opt/qwen-deploy/current/venv/bin/python"
    torch = [python, "-c", "import torch; print(torch.__version__)"]
    shown = host.run(["setpriv", "--reuid=qwen", "--clear-groups", *torch]).stdout
    assert shown.strip().endswith("+cpu")
    owners = host.run("stat -c '%n %U %G %a' /etc /usr /var /root /opt /var/lib").stdout
    assert owners == served.before["owners"]


def test_no_secret_lies_where_others_could_read_it(served: Served) -> None:
    host = served.host
    operator_key = host.read("/etc/qwen-deploy/operator.key").strip()
    for secret in (served.key, operator_key):
        found = host.run(["grep", "-rslF", secret, *PLACES], check=False).stdout.split()
        assert found == (["/etc/qwen-deploy/operator.key"] if secret == operator_key else [])
        assert secret not in host.run("ps auxwwe").stdout
        assert secret not in host.run("journalctl --no-pager").stdout


def test_the_unit_verifies_and_is_sandboxed(served: Served) -> None:
    host = served.host
    verified = host.run(["systemd-analyze", "verify", "qwen.service", "qwen.socket"])
    assert "qwen" not in verified.stderr
    exposure = host.run(["systemd-analyze", "security", "--no-pager", "qwen.service"]).stdout
    level = re.search(r"exposure level for qwen.service: ([\d.]+)", exposure)
    assert level and float(level[1]) <= 2.5
    live = service.unit(host)
    assert (live["User"], live["NoNewPrivileges"], live["ProtectSystem"]) == (
        "qwen",
        "yes",
        "strict",
    )
    assert (live["Type"], live["Restart"], live["WatchdogUSec"]) == ("notify", "always", "2min")
    assert "Serving Qwen/Fixture" in live["StatusText"]


def test_up_again_changes_nothing_and_runs_no_playbook(served: Served) -> None:
    before = service.unit(served.host)["MainPID"]
    audit = served.host.read("/var/lib/qwen-deploy/audit.log")
    events = served.controller.events("up", "--yes")
    assert served.finished(events)["outcome"] == "unchanged"
    assert not [event for event in events if event["event"].startswith("task")]
    assert service.unit(served.host)["MainPID"] == before
    assert served.host.read("/var/lib/qwen-deploy/audit.log") == audit


def test_status_tells_what_the_host_serves(served: Served) -> None:
    (value,) = served.controller.events("status")
    assert value["ready"] is True
    assert value["release"] == served.releases[0]
    assert value["model"] == "Qwen/Fixture"
    assert value["memory_bytes"] > 100e6
    shown = served.controller.run("status").stdout.splitlines()
    assert shown[0].split() == [
        "HOST",
        "RELEASE",
        "UNIT",
        "READY",
        "MODEL",
        "UPTIME",
        "MEMORY",
        "GPU",
    ]
    assert shown[1].split()[:5] == [
        *(served.host.address, served.releases[0], "active", "yes", "Qwen/Fixture")
    ]


def test_logs_show_the_units_journal(served: Served) -> None:
    shown = served.controller.run("logs", "-n", "1000").stdout
    assert "Serving Qwen/Fixture" in shown
    assert len(served.controller.run("logs", "-n", "2").stdout.splitlines()) == 2
    later = served.controller.run("logs", "--since", "2100-01-01").stdout
    assert "Serving" not in later


def test_logs_follow_goes_on_as_lines_come(served: Served) -> None:
    follower = pexpect.spawn(
        str(PROGRAM),
        ["logs", "-f", "-n", "1"],
        cwd=str(served.controller.folder),
        env=served.controller.environment,
        encoding="utf-8",
        timeout=60,
    )
    try:
        follower.expect("qwen|python")
        service.answer(served.host, served.key, HELLO)
        follower.expect("path=/v1/chat/completions status=200 .*key=default")
    finally:
        follower.sendintr()
        follower.close()


def test_chat_answers_in_a_terminal(served: Served) -> None:
    chat = pexpect.spawn(
        str(PROGRAM),
        ["chat"],
        cwd=str(served.controller.folder),
        env={**served.controller.environment, "PROMPT_TOOLKIT_NO_CPR": "1"},
        encoding="utf-8",
        timeout=60,
    )
    try:
        chat.expect("User>")
        chat.send(f"{HELLO}\r")
        chat.expect(re.escape(answer_to(HELLO)))
        chat.expect("User>")
        chat.send(":seed 7\r")
        chat.expect("7")
        chat.expect("User>")
        chat.send(":exit\r")
        chat.expect(pexpect.EOF)
    finally:
        chat.close()
    assert chat.exitstatus == 0


def test_chat_answers_a_pipe(served: Served) -> None:
    done = served.controller.run("chat", stdin=f"{HELLO}\n")
    assert done.stdout.strip() == answer_to(HELLO)


def test_no_request_is_refused_while_the_unit_restarts(served: Served) -> None:
    before = service.unit(served.host)["MainPID"]
    failures: list[str] = []
    answered: list[str] = []
    is_over = threading.Event()

    def ask() -> None:
        # Bounded by the restart, and by a number that no restart reaches.
        for _ in range(2000):
            if is_over.is_set():
                return
            try:
                answered.append(service.answer(served.host, served.key, HELLO))
            except openai.APIConnectionError as error:
                failures.append(repr(error.__cause__))
            except openai.APIStatusError as error:
                # Told to come back later: what a client's own retry is for.
                if error.status_code != 503:
                    failures.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        served.controller.run("restart")
    finally:
        is_over.set()
        asking.join()
    assert service.unit(served.host)["MainPID"] != before
    assert failures == []
    assert set(answered) == {answer_to(HELLO)}


def test_a_reboot_brings_the_service_back(served: Served) -> None:
    served.host.reboot()
    events = served.controller.events("up", "--yes")
    assert served.finished(events)["outcome"] in ("unchanged", "changed")
    assert service.answer(served.host, served.key, HELLO) == answer_to(HELLO)


def test_changed_settings_make_a_new_release(served: Served) -> None:
    served.controller.configure(served.host, service={"threads": 1, "port": 8010})
    events = served.controller.events("up", "--yes")
    assert "listen 0.0.0.0:8000 -> 0.0.0.0:8010" in events[0]["steps"][0]["summary"]
    served.releases.append(str(served.finished(events)["release"]))
    assert len(set(served.releases)) == 2
    assert service.current(served.host) == served.releases[1]
    assert served.host.listening_ports() & {8000, 8010} == {8010}
    assert service.answer(served.host, served.key, HELLO, port=8010) == answer_to(HELLO)


def test_rollback_returns_to_the_release_before(served: Served) -> None:
    served.controller.run("rollback")
    assert service.current(served.host) == served.releases[0]
    assert service.ready(served.host)["release"] == served.releases[0]
    assert served.host.listening_ports() & {8000, 8010} == {8000}


def test_rollback_to_an_unknown_release_changes_nothing(served: Served) -> None:
    done = served.controller.run("rollback", "r-00000000", expect=3)
    assert "no release r-00000000" in done.stderr
    assert "was not changed" in done.stderr
    assert service.current(served.host) == served.releases[0]


def test_releases_and_history_tell_what_happened(served: Served) -> None:
    listed = {row["release"]: row["state"] for row in served.controller.events("releases")}
    assert listed == {served.releases[0]: "current", served.releases[1]: "proven"}
    history = [(row["action"], row["outcome"]) for row in served.controller.events("history")]
    assert history[0] == ("up", "changed")
    assert history[-1] == ("rollback", "changed")


def test_a_model_that_cannot_load_is_rolled_back_with_evidence(
    served: Served, tmp_path: Path
) -> None:
    broken = broken_model(tmp_path / "broken")
    served.controller.configure(served.host, model={"source": str(broken), "name": "Qwen/Broken"})
    done = served.controller.run("up", "--yes", expect=1)
    assert "is not ready" in done.stderr
    assert "(journal of qwen.service)" in done.stderr
    assert f"was rolled back and serves {served.releases[0]}" in done.stderr
    assert "hint: " in done.stderr
    assert service.current(served.host) == served.releases[0]
    assert service.answer(served.host, served.key, HELLO) == answer_to(HELLO)


def broken_model(folder: Path) -> Path:
    """Whole to look at, and impossible to load: the configuration promises other shapes."""
    import json
    import shutil

    from tests.fixture_model import fixture_model

    shutil.copytree(fixture_model(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["hidden_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_drift_is_repaired(served: Served) -> None:
    host = served.host
    served.controller.configure(host)
    host.run("echo '# edited' >> /etc/systemd/system/qwen.service")
    environment = f"/opt/qwen-deploy/releases/{served.releases[0]}/environment"
    host.run(f"sed -i s/32/3/ {environment}")
    packages = "/opt/qwen-deploy/current/venv/lib/python3*/site-packages"
    host.run(f"rm -r {packages}/uvicorn")
    host.run("systemctl disable --now qwen.service qwen.socket")
    done = served.controller.run("up", "--yes")
    assert "service: repair" in done.stderr
    assert "runtime: build the cpu environment" in done.stderr
    assert "# edited" not in host.read("/etc/systemd/system/qwen.service")
    assert 'QWEN_MAX_BATCH="32"' in host.read(environment)
    assert service.unit(host)["UnitFileState"] == "enabled"
    assert service.answer(host, served.key, HELLO) == answer_to(HELLO)


def test_a_held_lock_is_told_with_its_holder(served: Served) -> None:
    owner = '{"who": "li@jump", "since": "2026-11-22 09:00:00 CST", "purpose": "up"}'
    hold = f"echo '{owner}' > /run/qwen-deploy.lock; exec 9<>/run/qwen-deploy.lock; flock 9"
    holder = served.host.run(f"{hold}; setsid sleep 300 >/dev/null 2>&1 & echo $!").stdout.strip()
    try:
        done = served.controller.run("restart", expect=3)
    finally:
        served.host.run(["kill", "--", holder])
    assert "is locked by li@jump for `up` since 2026-11-22 09:00:00 CST" in done.stderr
    assert "was not changed" in done.stderr
    served.controller.run("up", "--yes")


def test_a_new_api_key_replaces_the_old_one(served: Served) -> None:
    events = served.controller.events("up", "--yes", "--new-api-key")
    created = next(event for event in events if event["event"] == "key_created")
    assert service.answer(served.host, created["key"], HELLO) == answer_to(HELLO)
    with pytest.raises(openai.AuthenticationError):
        service.answer(served.host, served.key, HELLO)


def test_without_auth_any_key_will_do(served: Served) -> None:
    served.controller.run("up", "--yes", "--no-auth")
    assert service.answer(served.host, "none", HELLO) == answer_to(HELLO)


def test_down_stops_the_service_and_keeps_the_weights(served: Served) -> None:
    served.controller.run("down", "--yes")
    assert 8000 not in served.host.listening_ports()
    assert not served.host.exists("/etc/systemd/system/qwen.service")
    assert served.host.exists("/var/lib/qwen-deploy/models/Qwen--Fixture")
    assert served.finished(served.controller.events("down", "--yes"))["outcome"] == "unchanged"


def test_purge_leaves_nothing_behind(served: Served) -> None:
    served.controller.run("down", "--purge", "--yes")
    after = service.snapshot(served.host)
    for matter, before in served.before.items():
        added = set(after[matter].splitlines()) - set(before.splitlines())
        gone = set(before.splitlines()) - set(after[matter].splitlines())
        assert (matter, sorted(added), sorted(gone)) == (matter, [], [])
