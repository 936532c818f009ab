"""Weights from hubs, folders and archives to bare hosts; killed, cut, damaged and shared.

No service is started here: a transfer needs SSH, python3 and systemd alone. The hub is a server of
ours on the lab's own bridge, read by the real clients here and by the weights program there.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub
from tests.lab import Host, Lab
from tests.lab.controller import Controller, events_of
from tests.lab.shell import wait_until
from tests.model_folder import make_model, shard_name

pytestmark = pytest.mark.lab

MODEL = "Qwen/Tiny"
MIB = 1 << 20
SHARD_BYTES = 24 * MIB
SHARD = shard_name(1, 2)
MODELS = "/var/lib/qwen-deploy/models"
UNIT = "qwen-weights.service"
# Both hubs are asked for the start of the largest file.
PROBE_BYTES = 2 * 2 * MIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), shards=2, shard_bytes=SHARD_BYTES)


@pytest.fixture
def hub(lab: Lab, folder: Path) -> Iterator[Hub]:
    with Hub(address=lab.gateway) as hub:
        hub.add(MODEL, folder)
        yield hub


@pytest.fixture
def controller(lab: Lab, hub: Hub, tmp_path: Path) -> Controller:
    return make_controller(lab, hub, tmp_path / "operator")


def make_controller(lab: Lab, hub: Hub, place: Path) -> Controller:
    controller = Controller(lab, place)
    at_hub = {"HF_ENDPOINT": hub.endpoint, "MODELSCOPE_ENDPOINT": hub.endpoint}
    controller.environment |= at_hub
    return controller


def configure(controller: Controller, *hosts: Host, source: str = "auto", **weights: Any) -> None:
    model = {"source": source, "name": MODEL}
    controller.configure(*hosts, model=model, weights={"retry_seconds": 30, **weights})


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def lying_on(host: Host) -> dict[str, str]:
    """What lies on the host under the model's final name, as sha256sum says."""
    lines = host.run(f"cd {MODELS}/Qwen--Tiny/w-*/ && sha256sum -- *[!n] *.json").stdout
    pairs = (line.split(maxsplit=1) for line in lines.splitlines())
    return {name: digest for digest, name in pairs if not name.startswith("manifest.")}


def has_folder(host: Host) -> bool:
    return bool(host.run(f"ls -d {MODELS}/Qwen--Tiny/w-*[0-9a-f]", check=False).stdout.strip())


def status_of(host: Host) -> dict[str, Any]:
    text = host.run("cat /run/qwen-deploy-weights/status.json", check=False).stdout
    return json.loads(text) if text else {}


def until_bytes(host: Host, count: int) -> None:
    wait_until(lambda: status_of(host).get("bytes_done", 0) >= count, 60, f"{count} bytes")


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def shard_bytes_sent(hub: Hub) -> int:
    return sum(count for path, count in hub.sent_bytes.items() if path.endswith(".safetensors"))


def test_a_model_comes_from_the_hubs_and_is_proven(
    controller: Controller, hub: Hub, host: Host, folder: Path
) -> None:
    configure(controller, host)
    events = controller.events("weights", "pull")
    assert events[-1]["outcome"] == "changed"
    assert lying_on(host) == sums(folder)
    asked = len(hub.requests)
    assert controller.events("weights", "pull")[-1]["outcome"] == "unchanged"
    (listed,) = controller.events("weights", "list")
    (model,) = listed["models"]
    assert (model["model"], model["proof"], model["used_by"]) == (MODEL, "hub", [])
    assert controller.events("weights", "verify")[-1]["ok"] is True
    served = [one for one in hub.requests[asked:] if one.path.endswith(".safetensors")]
    assert not served
    assert shard_bytes_sent(hub) < 2 * SHARD_BYTES + PROBE_BYTES + MIB


def test_a_transfer_goes_on_without_its_operator_and_is_found_by_another(
    lab: Lab, controller: Controller, hub: Hub, host: Host, folder: Path, tmp_path: Path
) -> None:
    configure(controller, host, limit_rate="2M")
    process = controller.start("weights", "pull")
    try:
        until_bytes(host, 4 * MIB)
    finally:
        kill(process)
    other = make_controller(lab, hub, tmp_path / "other")
    configure(other, host, limit_rate="2M")
    (seen,) = other.events("weights", "status")
    assert seen["status"]["phase"] == "fetching"
    assert other.events("weights", "pull")[-1]["outcome"] == "changed"
    assert lying_on(host) == sums(folder)


def test_detach_cancel_and_go_on(
    controller: Controller, hub: Hub, host: Host, folder: Path
) -> None:
    configure(controller, host)
    controller.run("weights", "pull", "--detach", "--limit-rate", "4M")
    until_bytes(host, 4 * MIB)
    assert controller.events("weights", "cancel")[-1]["outcome"] == "canceled"
    assert host.run(["systemctl", "is-active", UNIT], check=False).stdout.strip() != "active"
    assert not has_folder(host)
    before = shard_bytes_sent(hub)
    controller.run("weights", "pull")
    assert lying_on(host) == sums(folder)
    assert shard_bytes_sent(hub) - before < 2 * SHARD_BYTES


def test_a_host_that_loses_power_goes_on_where_it_was(
    controller: Controller, hub: Hub, host: Host, folder: Path
) -> None:
    configure(controller, host, limit_rate="8M")
    process = controller.start("weights", "pull")
    try:
        until_bytes(host, 32 * MIB)
        host.power_loss()
        host.boot()
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]
        assert process.wait(timeout=120) == 0
    finally:
        kill(process)
    assert events[-1]["outcome"] == "changed"
    assert lying_on(host) == sums(folder)
    # The hub counts what it sent: two probes, and what no program had read when the power went.
    assert shard_bytes_sent(hub) < 2 * SHARD_BYTES + 2 * PROBE_BYTES + 12 * MIB


@pytest.mark.parametrize("received_mib", [6, 32])
def test_a_host_that_is_told_to_reboot_goes_on_where_it_was(
    controller: Controller, hub: Hub, host: Host, folder: Path, received_mib: int
) -> None:
    """On its way down it still answers, and systemd stops the transfer as a person would."""
    configure(controller, host, limit_rate="4M")
    process = controller.start("weights", "pull")
    try:
        until_bytes(host, received_mib * MIB)
        host.reboot()
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]
        assert process.wait(timeout=120) == 0, events[-3:]
    finally:
        kill(process)
    assert events[-1]["outcome"] == "changed"
    assert lying_on(host) == sums(folder)
    assert shard_bytes_sent(hub) < 2 * SHARD_BYTES + 2 * PROBE_BYTES + 12 * MIB


def test_what_a_reboot_ended_is_told_with_the_way_on(
    controller: Controller, hub: Hub, host: Host, folder: Path
) -> None:
    """Nobody is attached, and a transient unit does not come back by itself."""
    configure(controller, host)
    controller.run("weights", "pull", "--detach", "--limit-rate", "4M")
    until_bytes(host, 8 * MIB)
    host.reboot()
    (seen,) = controller.events("weights", "status")
    (left,) = seen["unfinished"]
    assert (left["model"], seen["status"]) == (MODEL, {})
    assert 8 * MIB <= left["bytes_done"] < left["bytes_total"]
    way = f"qwen-deploy weights pull --host {host.address} --model {MODEL}"
    for command in ("status", "list"):
        told = controller.run("weights", command).stderr.replace("root@", "")
        assert f"are kept, to go on: {way}" in told
    controller.run("weights", "pull")
    assert lying_on(host) == sums(folder)
    assert controller.events("weights", "status")[0]["unfinished"] == []


def test_what_is_gone_since_is_brought_again(
    controller: Controller, hub: Hub, hosts: tuple[Host, ...], folder: Path
) -> None:
    """Nothing that a finished transfer left running may stand for what it brought."""
    configure(controller, *hosts)
    controller.run("weights", "pull")
    hosts[0].run(f"rm -rf {MODELS}/Qwen--Tiny")
    controller.run("weights", "pull")
    assert [lying_on(host) for host in hosts] == [sums(folder)] * 2
    assert not any(relay_ports(host) for host in hosts)


def test_a_group_that_cannot_start_leaves_nothing_running(
    controller: Controller, hub: Hub, hosts: tuple[Host, ...], tmp_path: Path
) -> None:
    hub.add("Qwen/Other", make_model(tmp_path / "other", shards=1, shard_bytes=MIB, seed=7))
    configure(controller, hosts[0])
    controller.run("weights", "pull", "--detach", "--limit-rate", "2M")
    configure(controller, *hosts)
    told = controller.run("weights", "pull", "--model", "Qwen/Other", expect=3)
    assert f"is receiving {MODEL}" in told.stderr
    assert "qwen-deploy weights cancel" in told.stderr
    assert not is_receiving(hosts[1])
    assert is_receiving(hosts[0])
    controller.run("weights", "cancel")


def test_a_gated_model_is_refused_before_anything_starts(
    controller: Controller, hub: Hub, host: Host, folder: Path
) -> None:
    hub.add("Qwen/Gated", folder, token="hf_right", is_gated=True)
    configure(controller, host, source="huggingface")
    told = controller.run("weights", "pull", "--model", "Qwen/Gated", expect=4)
    assert "gated" in told.stderr
    assert status_of(host) == {}


def test_damage_is_found_without_a_network_and_only_that_is_fetched(
    controller: Controller, hub: Hub, host: Host, folder: Path
) -> None:
    configure(controller, host)
    controller.run("weights", "pull")
    # The hashes of pieces are recorded once nobody waits for the weights any more.
    record = f"{MODELS}/Qwen--Tiny/w-*/manifest.pieces.json"
    wait_until(lambda: host.run(f"ls {record}", check=False).returncode == 0, 60, "the record")
    path = host.run(f"ls {MODELS}/Qwen--Tiny/w-*/{SHARD}").stdout.strip()
    host.run(f"printf X | dd of={path} bs=1 seek={20 * MIB} conv=notrunc status=none")
    host.isolate()
    verdict = controller.events("weights", "verify", expect=5)[0]
    assert [one["path"] for one in verdict["problems"]] == [SHARD]
    ((first, end),) = verdict["problems"][0]["ranges"]
    assert (first, end) == (16 * MIB, (folder / SHARD).stat().st_size)
    host.join()
    before = shard_bytes_sent(hub)
    controller.run("weights", "pull", "--repair")
    assert lying_on(host) == sums(folder)
    assert shard_bytes_sent(hub) - before < 9 * MIB + PROBE_BYTES
    assert controller.events("weights", "verify")[-1]["ok"] is True


def test_two_hosts_cost_the_hub_what_one_does(
    controller: Controller, hub: Hub, hosts: tuple[Host, ...], folder: Path
) -> None:
    configure(controller, *hosts, limit_rate="16M")
    controller.run("weights", "pull")
    assert [lying_on(host) for host in hosts] == [sums(folder)] * 2
    # Both hosts probe both hubs.
    assert shard_bytes_sent(hub) < 2 * SHARD_BYTES + 2 * PROBE_BYTES + 2 * MIB
    assert not any(relay_ports(host) for host in hosts)


def relay_ports(host: Host) -> set[int]:
    share = status_of(host).get("share")
    return {share["port"]} & host.listening_ports() if share else set()


def is_receiving(host: Host) -> bool:
    return host.run(["systemctl", "is-active", UNIT], check=False).stdout.strip() == "active"


def test_a_relay_that_is_killed_in_the_middle_holds_nobody_up(
    controller: Controller, hub: Hub, hosts: tuple[Host, ...], folder: Path
) -> None:
    configure(controller, *hosts, limit_rate="8M")
    process = controller.start("weights", "pull")
    try:
        until_bytes(hosts[1], 8 * MIB)
        hosts[0].run(["systemctl", "kill", "--signal=KILL", UNIT])
        assert process.stdout is not None
        process.stdout.read()
        assert process.wait(timeout=120) == 0
    finally:
        kill(process)
    assert [lying_on(host) for host in hosts] == [sums(folder)] * 2


def test_hosts_that_may_not_talk_do_so_through_the_operator(
    controller: Controller, hub: Hub, hosts: tuple[Host, ...], folder: Path
) -> None:
    configure(controller, *hosts)
    hosts[1].run(["ip", "route", "add", "unreachable", f"{hosts[0].address}/32"])
    controller.run("weights", "pull")
    assert [lying_on(host) for host in hosts] == [sums(folder)] * 2
    assert shard_bytes_sent(hub) < 2 * SHARD_BYTES + 10 * MIB


def test_a_new_host_gets_it_from_the_one_that_has_it(
    controller: Controller, hub: Hub, hosts: tuple[Host, ...], folder: Path
) -> None:
    configure(controller, hosts[0])
    controller.run("weights", "pull")
    before = shard_bytes_sent(hub)
    configure(controller, *hosts)
    controller.run("weights", "pull")
    assert lying_on(hosts[1]) == sums(folder)
    assert shard_bytes_sent(hub) - before < 5 * MIB  # the probe


def test_a_host_without_a_network_reads_through_the_operators(
    lab: Lab, controller: Controller, hub: Hub, host: Host, folder: Path
) -> None:
    configure(controller, host)
    host.run(["ip", "route", "add", "prohibit", "default"], check=False)
    port = hub.endpoint.rpartition(":")[2]
    host.run(f"iptables -A OUTPUT -p tcp --dport {port} -j REJECT", check=False)
    controller.run("weights", "pull")
    assert lying_on(host) == sums(folder)


@pytest.mark.parametrize("form", ["folder", "tar.gz", "zip"])
def test_what_was_carried_to_the_operator_reaches_the_host(
    controller: Controller, host: Host, folder: Path, tmp_path: Path, form: str
) -> None:
    source = folder if form == "folder" else pack(folder, tmp_path / f"Tiny.{form}")
    configure(controller, host, source=str(source))
    controller.run("weights", "pull")
    assert lying_on(host) == sums(folder)


def pack(folder: Path, archive: Path) -> Path:
    import shutil

    form = {".gz": "gztar", ".zip": "zip", ".tar": "tar"}[archive.suffix]
    base = str(archive).removesuffix("".join(archive.suffixes))
    return Path(shutil.make_archive(base, form, folder.parent, folder.name))


def test_what_lies_on_the_host_is_linked_and_not_copied(
    controller: Controller, host: Host, folder: Path
) -> None:
    carry(folder, host, "/srv/Tiny")
    configure(controller, host, source="host:/srv/Tiny")
    before = used_bytes(host)
    controller.run("weights", "pull")
    assert lying_on(host) == sums(folder)
    assert used_bytes(host) - before < 4 * MIB
    (listed,) = controller.events("weights", "list")
    assert listed["models"][0]["proof"] == "hub"  # which was asked, and has the same bytes


def carry(folder: Path, host: Host, path: str) -> None:
    packed = subprocess.run(
        ["tar", "-cC", str(folder), "."], capture_output=True, check=True
    ).stdout
    leader = str(host.machine_leader_pid)
    enter = ["nsenter", "--target", leader, "--all", "--"]
    unpack = ["sh", "-c", f"mkdir -p {path} && tar -xC {path}"]
    subprocess.run([*enter, *unpack], input=packed, check=True)


def used_bytes(host: Host) -> int:
    return int(host.run("df --output=used -B1 /var/lib | tail -1").stdout)


def test_a_clone_with_pointers_only_is_named(controller: Controller, hub: Hub, host: Host) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    host.put("/srv/Clone/model.safetensors", pointer)
    host.put("/srv/Clone/config.json", "{}")
    configure(controller, host, source="host:/srv/Clone")
    told = controller.run("weights", "pull", expect=None)
    assert told.returncode in (2, 3, 5)
    assert "git-lfs pointer" in told.stderr
    assert "model.safetensors" in told.stderr


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    controller: Controller, hub: Hub, host: Host
) -> None:
    configure(controller, host)
    with host.small_disk("/var/lib/qwen-deploy", 32 * MIB):
        told = controller.run("weights", "pull", expect=3)
        assert "the disk at /var/lib/qwen-deploy is too small" in told.stderr
        assert host.run("find /var/lib/qwen-deploy -type f").stdout == ""


def test_what_no_release_needs_is_pruned_when_somebody_agrees(
    controller: Controller, hub: Hub, host: Host
) -> None:
    configure(controller, host)
    controller.run("weights", "pull")
    assert "nobody agreed" in controller.run("weights", "prune", expect=3).stderr
    assert has_folder(host)
    (pruned,) = controller.events("weights", "prune", "--yes")
    assert pruned["bytes"] > 2 * SHARD_BYTES
    assert not has_folder(host)


def test_follow_events_name_source_and_rate(controller: Controller, hub: Hub, host: Host) -> None:
    configure(controller, host, source="modelscope", limit_rate="16M")
    process = controller.start("weights", "pull")
    try:
        told = [one for one in events_of(process) if one["event"] == "transfer_progress"]
        assert process.wait(timeout=60) == 0
    finally:
        kill(process)
    assert {one["source"] for one in told if one["phase"] == "fetching"} == {"modelscope"}
    assert hub.sent_by["huggingface"] == 0
