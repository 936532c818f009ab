"""Everything set otherwise: a user with sudo password, a jump host, a key file, a loopback port,
and weights from a hub that is gone afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixture_model import sharded_model
from tests.fixture_model.dialogues import answer_to
from tests.hub import Hub
from tests.lab import Host, Lab, service
from tests.lab.controller import MODEL_NAME, Controller

pytestmark = pytest.mark.lab


def test_up_as_a_user_with_a_sudo_password_through_a_jump_host(
    lab: Lab, hosts: tuple[Host, ...], tmp_path: Path
) -> None:
    host, jump = hosts
    host.add_user("ops", password="correct horse", sudo="password")
    controller = Controller(lab, tmp_path / "operator")
    controller.environment = lab.make_environment("elsewhere", key=False)
    (controller.folder / "password").write_text("correct horse\n")
    (controller.folder / "key.txt").write_text("sk-a-key-of-our-own-0123456789\n")
    controller.configure(
        host,
        model={"source": "modelscope", "aliases": ["qwen-turbo"]},
        service={"address": "127.0.0.1", "port": 9000, "api_key_file": "./key.txt", "max_batch": 2},
        ssh={
            "user": "ops",
            "key_file": str(lab.ssh_key),
            "jump": f"root@{jump.address}",
            "sudo_password_file": "./password",
        },
    )
    with Hub(address=lab.gateway) as hub:
        hub.add(MODEL_NAME, sharded_model(tmp_path / "sharded"))
        controller.environment["MODELSCOPE_ENDPOINT"] = hub.endpoint
        events = controller.events("up", "--yes", "--host", host.address)
    plan = next(event for event in events if event["event"] == "plan")
    assert plan["weights"]["from"] == "modelscope"
    assert plan["weights"]["eta_seconds"] > 0
    assert not [event for event in events if event["event"] == "key_created"]
    assert service.ready(host, port=9000)["status"] == "ready"
    listening = host.run("ss -Hltn").stdout
    assert "127.0.0.1:9000" in listening
    done = controller.run("chat", "--once", "你好", "--host", host.address)
    assert done.stdout.strip() == answer_to("你好")
    asked = host.run(
        [
            *("curl", "-s", "http://127.0.0.1:9000/v1/models"),
            *("-H", "Authorization: Bearer sk-a-key-of-our-own-0123456789"),
        ]
    ).stdout
    assert "qwen-turbo" in asked
    # What the host holds says which revision it is: no hub is asked.
    again = controller.events("up", "--yes", "--host", host.address)
    assert again[-1]["outcome"] == "unchanged"
    controller.run("restart", "--host", host.address)
    controller.run("down", "--purge", "--yes", "--host", host.address)
    assert not host.exists("/home/ops/.qwen-deploy")
    assert "correct horse" not in host.run("journalctl --no-pager").stdout
