"""The lab itself: what it promises to the tests that stand on it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from tests import pip_settings
from tests.lab import Host, Lab, LabError
from tests.lab.shell import check_requirements, wait_until

pytestmark = pytest.mark.lab


def ssh(
    lab: Lab, address: str, command: str, *, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=3"]
    return subprocess.run(
        ["ssh", *options, address, command],
        env=environment or lab.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_host_is_a_bare_debian_that_runs(host: Host) -> None:
    assert host.run("systemctl is-system-running").stdout == "running\n"
    assert host.run("systemctl --failed --quiet").stdout == ""
    assert host.read("/proc/1/comm") == "systemd\n"
    assert host.run("python3 --version; sudo --version").stdout
    assert host.run("command -v git pip pip3 uv", check=False).stdout == ""
    assert host.listening_ports() == {22}


def test_ssh_reaches_a_host(lab: Lab, host: Host) -> None:
    assert ssh(lab, f"root@{host.address}", "uname -n").stdout == f"{host.name}\n"


def test_paramiko_reaches_a_host(lab: Lab, host: Host) -> None:
    program = "import fabric, sys; print(fabric.Connection(sys.argv[1]).run('id -un', hide=True))"
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, f"root@{host.address}"],
        env=lab.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "root" in finished.stdout, finished.stderr


def test_an_operator_without_the_key_is_refused(lab: Lab, host: Host) -> None:
    stranger = lab.make_environment("without-key", key=False)
    refused = ssh(lab, f"root@{host.address}", "true", environment=stranger)
    assert "Permission denied" in refused.stderr


def test_an_operator_who_never_met_the_host_is_warned(lab: Lab, host: Host) -> None:
    newcomer = lab.make_environment("without-known-hosts", known_hosts=False)
    refused = ssh(lab, f"root@{host.address}", "true", environment=newcomer)
    assert "Host key verification failed" in refused.stderr


def test_a_host_installs_packages_from_the_machines_mirror(host: Host) -> None:
    host.run("apt-get update && apt-get install --yes git git-lfs", timeout=300)
    assert host.run("git lfs version").stdout.startswith("git-lfs/")


def test_a_host_reaches_the_package_index(host: Host) -> None:
    index = pip_settings.load().index_url or "https://pypi.org/simple/"
    program = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1] + 'pip/').status)"
    assert host.run(["python3", "-c", program, index.rstrip("/") + "/"]).stdout == "200\n"


def test_a_host_sees_the_local_wheels_and_cannot_change_them(host: Host) -> None:
    for folder in pip_settings.load().local_folders:
        assert host.run(["ls", str(folder)]).stdout
        assert "Read-only" in host.run(["touch", f"{folder}/mine"], check=False).stderr


def test_users_log_in_and_use_sudo_as_they_may(lab: Lab, host: Host) -> None:
    host.add_user("anna", password="secret", sudo="password")
    host.add_user("bert", sudo="nopasswd")
    host.add_user("carl")
    host.add_user("dora", key=False)
    assert ssh(lab, f"bert@{host.address}", "sudo -n id -un").stdout == "root\n"
    assert ssh(lab, f"anna@{host.address}", "sudo -n true").returncode != 0
    assert ssh(lab, f"anna@{host.address}", "echo secret | sudo -S id -un").stdout == "root\n"
    assert ssh(lab, f"anna@{host.address}", "echo wrong | sudo -S id -un").stdout == ""
    assert ssh(lab, f"carl@{host.address}", "echo | sudo -S id -un").stdout == ""
    assert "Permission denied" in ssh(lab, f"dora@{host.address}", "true").stderr


def test_a_program_inside_gets_input_and_its_failure_is_shown(host: Host) -> None:
    assert host.run(["tr", "a-z", "A-Z"], input="你好 abc").stdout == "你好 ABC"
    with pytest.raises(subprocess.CalledProcessError) as failure:
        host.run("echo why >&2; exit 3")
    assert failure.value.returncode == 3
    assert f"on {host.name}:\nwhy\n" in failure.value.__notes__


def test_a_program_that_takes_too_long_is_ended_inside(host: Host) -> None:
    ended = host.run(["sleep", "1234"], timeout=1, check=False)
    assert ended.returncode == 124
    assert "sleep" not in host.run("ps -e -o args").stdout


def test_files_are_put_with_their_mode(host: Host) -> None:
    host.put("/srv/new/folder/file", "text\n", 0o640)
    assert host.read("/srv/new/folder/file") == "text\n"
    assert host.run("stat -c '%a %U' /srv/new/folder/file").stdout == "640 root\n"
    assert not host.exists("/srv/other")


def test_a_reset_leaves_nothing_but_the_host_key(lab: Lab, host: Host) -> None:
    key = host.read("/etc/ssh/ssh_host_ed25519_key.pub")
    identity = host.read("/etc/machine-id")
    host.put("/srv/file", "text")
    host.add_user("anna")
    host.isolate()
    lab.reset(host)
    assert not host.exists("/srv/file")
    assert "anna" not in host.read("/etc/passwd")
    assert host.read("/etc/ssh/ssh_host_ed25519_key.pub") == key
    assert host.read("/etc/machine-id") != identity
    assert ssh(lab, f"root@{host.address}", "uname -n").stdout == f"{host.name}\n"


def test_a_disk_survives_a_power_loss(lab: Lab, host: Host) -> None:
    before = host.machine_leader_pid
    host.put("/srv/file", "text")
    host.power_loss()
    assert ssh(lab, f"root@{host.address}", "true").returncode == 255
    with pytest.raises(LabError, match="not running"):
        host.run("true")
    host.boot()
    assert host.read("/srv/file") == "text"
    assert host.machine_leader_pid != before


@pytest.mark.parametrize("by", ["operator", "host"])
def test_a_host_reboots(host: Host, by: str) -> None:
    before = host.machine_leader_pid
    if by == "operator":
        host.reboot()
    else:
        host.run("systemctl --no-block reboot")
        wait_until(lambda: _has_rebooted(host, before), 60, "another PID 1")
    assert host.machine_leader_pid != before


def _has_rebooted(host: Host, before: int) -> bool:
    try:
        return host.machine_leader_pid != before
    except LabError:
        return False


def test_a_cut_cable_cuts_ssh_but_not_the_tests(lab: Lab, host: Host) -> None:
    host.cut_cable()
    assert ssh(lab, f"root@{host.address}", "true").returncode == 255
    assert host.run("uname -n").stdout == f"{host.name}\n"
    host.plug_cable()
    assert ssh(lab, f"root@{host.address}", "true").returncode == 0


def test_a_slow_link_is_slow_both_ways(lab: Lab, host: Host) -> None:
    host.slow_link("8mbit")
    for command in ("head -c 2000000 /dev/zero", "cat >/dev/null"):
        started = time.monotonic()
        subprocess.run(
            ["ssh", f"root@{host.address}", command],
            env=lab.environment,
            input=b"\0" * 2_000_000,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )
        # 16 Mbit; compression is off by default. 64 KiB pass at once.
        assert time.monotonic() - started > 1.5
    host.normal_link()
    assert "tbf" not in host.run("tc qdisc show dev host0").stdout


def test_a_small_disk_gets_full_and_goes(host: Host) -> None:
    with host.small_disk("/var/lib/small", 1_000_000):
        full = host.run("head -c 2000000 /dev/zero > /var/lib/small/file", check=False)
        assert "No space left" in full.stderr
    assert not host.exists("/var/lib/small")


def test_an_isolated_host_has_only_the_operator_and_its_siblings(
    lab: Lab, hosts: Sequence[Host]
) -> None:
    host, sibling = hosts
    server = host.read("/etc/resolv.conf").split()[1]
    probe = f"python3 -c \"import socket; socket.create_connection(('{server}', 53), 5)\""
    host.isolate()
    assert "unreachable" in host.run(probe, check=False).stderr
    assert ssh(lab, f"root@{host.address}", "true").returncode == 0
    assert _can_reach(host, sibling)
    host.join()
    assert "unreachable" not in host.run(probe, check=False).stderr


def _can_reach(host: Host, other: Host) -> bool:
    program = f"import socket; socket.create_connection(('{other.address}', 22), 5)"
    return host.run(["python3", "-c", program], check=False).returncode == 0


def test_a_new_host_key_is_noticed_and_a_reset_brings_the_old_one_back(
    lab: Lab, host: Host
) -> None:
    host.new_host_key()
    refused = ssh(lab, f"root@{host.address}", "true")
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in refused.stderr
    lab.reset(host)
    assert ssh(lab, f"root@{host.address}", "true").returncode == 0


def test_hosts_do_not_share_their_units(hosts: Sequence[Host]) -> None:
    first, second = hosts
    for host in hosts:
        host.run("systemd-run --unit=sleeper sleep 1000")
    first.run("systemctl stop sleeper")
    assert second.run("systemctl is-active sleeper").stdout == "active\n"
    assert first.run("systemctl is-active sleeper", check=False).stdout == "inactive\n"


def test_missing_programs_are_named_by_their_package() -> None:
    with pytest.raises(LabError, match="apt-get install no-such-package"):
        check_requirements({"no-such-program": "no-such-package", "sh": "dash"})
