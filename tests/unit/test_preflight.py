from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from qwen_service.engines import quantization

from qwen_deploy import facts as host_facts
from qwen_deploy import preflight, release
from qwen_deploy.preflight import Finding
from qwen_deploy.release import Release
from tests.fakes import MANIFEST, deployment, facts_of, release_of, serving

SERVICE = deployment().service
CPU = release_of()
CUDA = release.make(deployment(), MANIFEST, "cuda")
GPU = {
    "uuid": "GPU-1",
    "name": "NVIDIA H200",
    "memory.total": "143771",
    "memory.used": "1",
    "driver_version": "570.1",
    "compute_cap": "9.0",
}
GIB = 1 << 30


def disk(free_bytes: int, mount: str = "/") -> dict[str, Any]:
    return {"mount": mount, "free_bytes": free_bytes}


def findings(wanted: Release = CPU, **changes: Any) -> tuple[Finding, ...]:
    return preflight.inspect(facts_of(**changes), wanted, SERVICE)


def test_nothing_speaks_against_a_good_host() -> None:
    assert findings() == ()
    assert findings(CUDA, gpus=[GPU]) == ()


REFUSALS: dict[str, tuple[Release, dict[str, Any], str]] = {
    "no systemd": (CPU, {"has_systemd": False}, "the host does not run systemd"),
    "no apt": (
        CPU,
        {"has_apt": False, "os": {"ID": "rocky", "PRETTY_NAME": "Rocky Linux 9.5"}},
        "Rocky Linux 9.5 is not supported: it has no apt",
    ),
    "processor": (CPU, {"machine": "aarch64"}, "aarch64 is not supported"),
    "no python": (CPU, {"runtime_python": None}, "`python3` is not on the host"),
    "old python": (
        CPU,
        {"runtime_python": [3, 9]},
        "`python3` is Python 3.9: 3.11 or newer is needed",
    ),
    "other python than the CPU lock's": (
        CPU,
        {"runtime_python": [3, 13]},
        "the CPU packages are locked for Python 3.11, `python3` is 3.13",
    ),
    "port": (
        CPU,
        {"port_owner": {"pid": 812, "command": "nginx", "unit": "nginx.service"}},
        "port 8000 is taken by `nginx` (pid 812 of nginx.service)",
    ),
    "port of a process without a unit": (
        CPU,
        {"port_owner": {"pid": 812, "command": "python3", "unit": ""}},
        "port 8000 is taken by `python3` (pid 812)",
    ),
    "port of another socket unit": (
        CPU,
        {"port_owner": {"pid": 1, "command": "systemd", "unit": "init.scope"}},
        "port 8000 is taken by `systemd` (pid 1 of init.scope)",
    ),
    "one disk for all": (
        CPU,
        {"disks": {release.ROOT: disk(GIB), release.STATE: disk(GIB)}},
        "the disk at / is too small for /opt/qwen-deploy: 1.7 GB are to be written and "
        "200 MB must stay free, 1.1 GB are free",
    ),
    "disk of the weights": (
        CPU,
        {"disks": {release.ROOT: disk(90 * GIB), release.STATE: disk(GIB // 10, "/var")}},
        "the disk at /var is too small for /var/lib/qwen-deploy: 0 MB are to be written and "
        "200 MB must stay free, 107 MB are free",
    ),
    "disk for CUDA": (
        CUDA,
        {
            "gpus": [GPU],
            "disks": {release.ROOT: disk(5 * GIB), release.STATE: disk(90 * GIB, "/v")},
        },
        "the disk at / is too small for /opt/qwen-deploy: 9.0 GB are to be written and "
        "200 MB must stay free, 5.4 GB are free",
    ),
}


@pytest.mark.parametrize(("wanted", "changes", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_host_that_cannot_take_the_release_is_refused(
    wanted: Release, changes: dict[str, Any], message: str
) -> None:
    (finding,) = findings(wanted, **changes)
    assert (finding.level, finding.message) == ("refusal", message)
    assert finding.hint


def test_every_refusal_is_found_at_once() -> None:
    found = findings(has_systemd=False, machine="riscv64", memory_bytes=50)
    assert [finding.level for finding in found] == ["refusal", "refusal", "warning"]


def test_cuda_without_a_gpu_is_a_warning() -> None:
    assert findings(CUDA) == (
        Finding("warning", "no NVIDIA GPU answers: the model will run on the CPU"),
    )


UUIDS = [f"{kind}-8932f937-d72c-4106-c12f-20bd9faed9f{n}" for n, kind in enumerate(("GPU", "MIG"))]


def judged(service: dict[str, Any], gpus: list[dict[str, str]], wanted: Release = CUDA) -> Any:
    return preflight.inspect(facts_of(gpus=gpus), wanted, deployment(service=service).service)


def test_named_gpus_and_mig_instances_that_are_there_are_taken() -> None:
    there = [GPU, GPU | {"uuid": UUIDS[0], "mig": f"MIG-x,{UUIDS[1]}"}]
    assert judged({"gpus": UUIDS}, there) == ()


def test_unknown_gpus_are_refused_with_those_there_are() -> None:
    (finding,) = judged({"gpus": UUIDS}, [GPU, GPU | {"uuid": UUIDS[0], "mig": "MIG-x"}])
    assert finding.level == "refusal"
    assert finding.message == f"it has no GPU {UUIDS[1]}; there are: GPU-1, {UUIDS[0]}, MIG-x"
    (finding,) = judged({"gpus": UUIDS[:1]}, [])
    assert finding.message == f"it has no GPU {UUIDS[0]}; there are: none"


@pytest.mark.parametrize(("wanted", "device"), [(CPU, "auto"), (CUDA, "cpu")])
def test_named_gpus_and_a_model_on_the_cpu_contradict_each_other(
    wanted: Release, device: str
) -> None:
    there = [GPU | {"uuid": UUIDS[0]}]
    (finding,) = judged({"gpus": UUIDS[:1], "device": device}, there, wanted)
    assert (finding.level, "on the CPU" in finding.message) == ("refusal", True)


def quantized(method: str, *packages: str) -> Release:
    lock = CPU.lock + "".join(f"{one}==1.0\n" for one in packages).encode()
    return replace(CPU, manifest=replace(MANIFEST, quantization=method), lock=lock)


@pytest.mark.parametrize(("method", "packages"), preflight.QUANTIZATION_NEEDS.items())
def test_a_quantized_model_is_taken_where_its_packages_are_locked(
    method: str, packages: tuple[str, ...]
) -> None:
    assert findings(quantized(method, *packages)) == ()


def test_a_quantized_model_is_refused_with_the_packages_it_lacks() -> None:
    (finding,) = findings(quantized("gptq", "optimum"))
    assert (finding.level, finding.message) == (
        "refusal",
        "the model is quantized by gptq, which needs gptqmodel: not among the packages for cpu",
    )
    assert finding.hint
    (finding,) = findings(quantized("unknown"))
    assert finding.message.startswith("the model is quantized by unknown, and only awq, ")


def test_the_service_judges_quantization_by_the_same_rule() -> None:
    assert quantization.NEEDS == preflight.QUANTIZATION_NEEDS


def test_a_model_larger_than_the_memory_is_a_warning() -> None:
    assert findings(memory_bytes=50) == (
        Finding("warning", "the model has 0.0 GiB, the host 0.0 GiB of memory"),
    )


@pytest.mark.parametrize("version", [[3, 11], [3, 12], [3, 13]])
def test_the_cuda_build_takes_every_new_python(version: list[int]) -> None:
    assert findings(CUDA, gpus=[GPU], runtime_python=version) == ()


@pytest.mark.parametrize(
    "owner",
    [
        {"pid": 812, "command": "python", "unit": "qwen.service"},
        {"pid": 1, "command": "systemd", "unit": "init.scope"},
    ],
)
def test_the_port_may_be_our_own(owner: dict[str, Any]) -> None:
    raw = serving(CPU, deployment(), port_owner=owner)
    assert preflight.inspect(host_facts.parse(json.dumps(raw)), CPU, SERVICE) == ()


def test_weights_that_were_found_damaged_do_not_count_as_there() -> None:
    there = {one.path: one.size for one in MANIFEST.artifacts}
    folder = f"/var/lib/qwen-deploy/models/{MANIFEST.directory}"
    told = {"digests": {f"{folder}/manifest.json": "f" * 64}}
    sound = facts_of(**told, trees={folder: there})
    damaged = facts_of(**told, trees={folder: {**there, "manifest.damage.json": 10}})
    assert preflight.has_weights(sound, MANIFEST)
    assert not preflight.has_weights(damaged, MANIFEST)
    assert preflight.missing_bytes(damaged, MANIFEST) == 0


def test_a_disk_of_its_own_is_named_once() -> None:
    state = "/var/lib/qwen-deploy"
    disks = {state: {"mount": state, "free_bytes": 1, "total_bytes": 1, "free_inodes": 1}}
    finding = preflight.weights_room(facts_of(disks=disks), MANIFEST)
    assert finding and finding.message.startswith(f"the disk at {state} is too small: 0 MB are")


def test_what_lies_on_the_host_needs_no_room() -> None:
    full = {release.ROOT: disk(0), release.STATE: disk(0)}
    raw = serving(CPU, deployment(), disks=full)
    assert preflight.inspect(host_facts.parse(json.dumps(raw)), CPU, SERVICE) == ()
