"""Ways into a host, and every way of not getting in: who is told what, and that nothing changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.lab import Host, Lab
from tests.lab.controller import Controller, configuration

pytestmark = pytest.mark.lab

PASSWORD = "correct horse"


@pytest.fixture
def controller(lab: Lab, host: Host, tmp_path: Path) -> Controller:
    controller = Controller(lab, tmp_path / "operator")
    controller.configure(host)
    return controller


def test_an_unreachable_host_is_told_beside_one_that_answers(
    lab: Lab, hosts: tuple[Host, ...], tmp_path: Path
) -> None:
    here, gone = hosts
    controller = Controller(lab, tmp_path)
    controller.configure(here, gone, ssh={"connect_seconds": 2})
    gone.cut_cable()
    try:
        done = controller.run("status", expect=5)
        refused = controller.run("up", "--yes", expect=4)
    finally:
        gone.plug_cable()
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "inactive" in rows[here.address]
    assert "unreachable" in rows[gone.address]
    assert f"`{gone.address}` cannot be reached: no answer" in refused.stderr
    assert not here.exists("/var/lib/qwen-deploy")


def test_a_wrong_user_is_told(controller: Controller, host: Host) -> None:
    done = controller.run("status", "--host", f"nobody@{host.address}", expect=4)
    assert f"`{host.address}` does not let `nobody` in" in done.stderr


def test_a_wrong_key_is_told_by_name(lab: Lab, host: Host, tmp_path: Path) -> None:
    controller = Controller(lab, tmp_path)
    controller.configure(host)
    controller.environment = lab.make_environment("stranger", key=False)
    key = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    done = controller.run("status", "--key-file", str(key), expect=4)
    assert f"does not let `root` in with {key}" in done.stderr
    assert "--key-file" in done.stderr


def test_a_user_without_sudo_is_told(controller: Controller, host: Host) -> None:
    host.add_user("ops", password=PASSWORD, sudo="none")
    done = controller.run("up", "--yes", "--host", f"ops@{host.address}", expect=4)
    assert f"`ops` on `{host.address}` needs a password for sudo" in done.stderr
    (controller.folder / "password").write_text(PASSWORD)
    controller.configure(host, ssh={"sudo_password_file": "./password"})
    done = controller.run("up", "--yes", "--host", f"ops@{host.address}", expect=4)
    assert f"`ops` on `{host.address}` may not use sudo" in done.stderr
    assert not host.exists("/var/lib/qwen-deploy")


def test_a_wrong_sudo_password_is_told_and_the_right_one_works(
    controller: Controller, host: Host
) -> None:
    host.add_user("ops", password=PASSWORD, sudo="password")
    controller.configure(host, ssh={"sudo_password_file": "./password"})
    (controller.folder / "password").write_text("wrong")
    done = controller.run("status", "--host", f"ops@{host.address}", expect=4)
    assert f"`ops` on `{host.address}` gave a wrong sudo password" in done.stderr
    assert "wrong" not in host.run("journalctl --no-pager | grep -v incorrect").stdout.split()
    (controller.folder / "password").write_text(f"{PASSWORD}\n")
    shown = controller.run("status", "--host", f"ops@{host.address}", expect=5).stdout
    assert "inactive" in shown


def test_an_unknown_host_key_is_refused_and_accepted_once(
    lab: Lab, host: Host, tmp_path: Path
) -> None:
    controller = Controller(lab, tmp_path)
    controller.configure(host)
    controller.environment = lab.make_environment("newcomer", known_hosts=False)
    done = controller.run("status", expect=4)
    public = host.run("ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub").stdout
    assert public.split()[1] in done.stderr
    assert "--accept-new-host-key" in done.stderr
    controller.run("status", "--accept-new-host-key", expect=5)
    controller.run("status", expect=5)


def test_a_changed_host_key_is_refused_even_with_accept(controller: Controller, host: Host) -> None:
    controller.run("status", expect=5)
    host.new_host_key()
    done = controller.run("status", "--accept-new-host-key", expect=4)
    assert f"the host key of `{host.address}` has changed" in done.stderr
    assert "ssh-keygen -R" in done.stderr


def test_proxy_jump_of_the_ssh_configuration_is_followed(
    lab: Lab, hosts: tuple[Host, ...], tmp_path: Path
) -> None:
    target, jump = hosts
    controller = Controller(lab, tmp_path)
    controller.environment = lab.make_environment("inside")
    folder = Path(controller.environment["HOME"]) / ".ssh"
    own = f"Host gpu\n  HostName {target.address}\n  User root\n  ProxyJump root@{jump.address}\n"
    (folder / "config").write_text(own + (folder / "config").read_text())
    settings = configuration() | {"hosts": ["gpu"]}
    (controller.folder / "qwen-deploy.yml").write_text(yaml.safe_dump(settings))
    controller.run("status", expect=5)
    came_from = target.run("journalctl -u ssh --no-pager | grep Accepted | tail -1").stdout
    assert f"from {jump.address}" in came_from
