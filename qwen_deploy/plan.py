"""Facts and a release to the steps that are missing. Pure; knows not how a step is carried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_weights.manifest import Manifest

from qwen_deploy.airgap import Bundle
from qwen_deploy.facts import Facts
from qwen_deploy.preflight import is_damaged, missing_bytes, wanting
from qwen_deploy.release import Release
from qwen_deploy.sizes import megabytes

KEEP_RELEASES = 5


@dataclass(frozen=True, slots=True)
class Step:
    stage: str
    summary: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What `up` would do on one host. Without steps the host is as wanted, though unproven.
    `brings` are the manifests whose artifacts it lacks: `transfer_bytes` of them."""

    host: str
    release: str
    previous: str | None
    steps: tuple[Step, ...]
    must_restart: bool
    brings: tuple[Manifest, ...]
    transfer_bytes: int
    expired: tuple[str, ...]

    @property
    def is_unchanged(self) -> bool:
        return not self.steps


def make(
    host: str,
    facts: Facts,
    release: Release,
    wanted: dict[str, str],
    *,
    writes_keys: bool,
    bundle: Bundle | None = None,
) -> Plan:
    """`wanted` maps every managed path to the digest it should have."""
    differing = tuple(path for path, digest in wanted.items() if facts.digests.get(path) != digest)
    brings = wanting(facts, release, bundle)
    missing = {manifest.model: missing_bytes(facts, manifest) for manifest in brings}
    unit_steps = _unit_steps(facts)
    steps = (
        *_host_steps(facts, tuple(path for path in differing if wanted[path] == "directory")),
        *_runtime_steps(release, differing, bundle, missing),
        *_weights_steps(facts, release.manifest, missing),
        *_service_steps(facts, release, differing),
        *((Step("keys", "write API keys"),) if writes_keys else ()),
        *unit_steps,
    )
    return Plan(
        host=host,
        release=release.id,
        previous=facts.current,
        steps=steps,
        must_restart=bool(unit_steps) and not _is_starting(facts),
        brings=brings,
        transfer_bytes=sum(missing.values()),
        expired=_expired(facts, release),
    )


def _host_steps(facts: Facts, directories: tuple[str, ...]) -> tuple[Step, ...]:
    missing = [name for name, is_there in facts.packages.items() if not is_there]
    return (
        *((Step("host", f"install {', '.join(missing)}"),) if missing else ()),
        *((Step("host", "create the system user and directories"),) if directories else ()),
    )


def _runtime_steps(
    release: Release,
    differing: tuple[str, ...],
    bundle: Bundle | None,
    missing: Mapping[str, int],
) -> tuple[Step, ...]:
    steps = []
    if f"{release.venv_dir}/.complete" in differing:
        wheels = bundle.wheels if bundle else None
        size = missing.get(wheels.model, 0) if wheels else 0
        source = f" from {len(wheels.artifacts)} wheels of the bundle" if wheels else ""
        brought = f", {megabytes(size)} to bring" if size else ""
        summary = f"build the {release.accelerator} environment{source}{brought}"
        steps.append(Step("runtime", summary))
    if any(path.endswith("/pip.conf") for path in differing):
        steps.append(Step("runtime", "write the pip configuration"))
    return tuple(steps)


def _weights_steps(facts: Facts, model: Manifest, missing: Mapping[str, int]) -> tuple[Step, ...]:
    """Of a model that an unfinished transfer left here in part, only the rest."""
    if model.model not in missing:
        return ()
    size, total = missing[model.model], model.total_bytes
    if is_damaged(facts, model):
        return (Step("weights", f"mend {model.model}: `weights verify` found it damaged"),)
    if not size:
        return (Step("weights", f"put {model.model} together from what is there"),)
    there = f" ({megabytes(total - size)} are there)" if size < total else ""
    return (Step("weights", f"bring {megabytes(size)} of {model.model}{there}"),)


def _service_steps(facts: Facts, release: Release, differing: tuple[str, ...]) -> tuple[Step, ...]:
    if facts.current != release.id:
        return (Step("service", _release_summary(facts, release)),)
    ours = (release.directory, "/etc/systemd/")
    drifted = [path for path in differing if path.startswith(ours)]
    return (Step("service", f"repair {', '.join(drifted[:3])}"),) if drifted else ()


def _release_summary(facts: Facts, release: Release) -> str:
    before = facts.current_release
    summary = f"release {facts.current or 'none'} -> {release.id}"
    changes = "; ".join(_differences(before, release.content)) if before else ""
    return f"{summary} ({changes})" if changes else summary


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What a person would call the change, not the hashes that follow from it."""
    for key in ("model", "revision", "accelerator", "python", "listen"):
        if before.get(key) != after[key]:
            yield f"{key} {before.get(key)} -> {after[key]}"
    old = before.get("settings", {})
    for key, value in after["settings"].items():
        # The model's name and revision were told above.
        if old.get(key) != value and not key.startswith(("QWEN_MODEL_NAME", "QWEN_MODEL_REV")):
            name = key.removeprefix("QWEN_").lower()
            yield f"{name} {old.get(key) or 'default'} -> {value or 'default'}"
    if before.get("lock") != after["lock"]:
        yield "other packages"
    if _program(before) != _program(after):
        yield "another version of the service"


def _program(content: Mapping[str, Any]) -> dict[str, str]:
    files: dict[str, str] = content.get("files", {})
    return {path: digest for path, digest in files.items() if not path.endswith("/listen.conf")}


def _is_serving(facts: Facts) -> bool:
    """Nothing to say about the unit: enabled, up, and it answers as the current release."""
    socket = facts.units.get("qwen.socket", {})
    is_up = facts.unit_state == "active" and socket.get("ActiveState") == "active"
    is_enabled = facts.unit.get("UnitFileState") == "enabled"
    is_ready = facts.answer is not None and facts.answer.is_ready
    is_read = facts.unit.get("NeedDaemonReload") == "no"
    return is_up and is_enabled and is_read and is_ready and _answers_as_current(facts)


def _answers_as_current(facts: Facts) -> bool:
    # An `up` that was killed may have left an older release running.
    return facts.answer is not None and facts.answer.release == facts.current


def _is_starting(facts: Facts) -> bool:
    """As after a reboot: it needs time and nothing else."""
    is_first_start = facts.unit.get("SubState") == "start" and facts.unit.get("NRestarts") == "0"
    return is_first_start and _answers_as_current(facts)


def _unit_steps(facts: Facts) -> tuple[Step, ...]:
    if facts.current is None or _is_serving(facts):
        return ()
    return (Step("unit", _unit_summary(facts)),)


def _unit_summary(facts: Facts) -> str:
    if _is_starting(facts):
        return "wait until it is ready"
    if facts.unit_state != "active":
        return f"start: it is {facts.unit_state}"
    answer = facts.answer
    if answer is None or not answer.is_ready:
        reason = answer and (answer.completion_error or answer.reason)
        return f"restart: {reason or 'it does not answer'}"
    if not _answers_as_current(facts):
        return f"restart: it still serves {answer.release}"
    return "restart: it is not set up to start with the host"


def _expired(facts: Facts, release: Release) -> tuple[str, ...]:
    """Old releases, and environments that only they used; never one that could be needed now."""
    newest = sorted(facts.releases, key=lambda one: float(one["made_at"]), reverse=True)
    kept = {release.id, facts.current, *facts.proven[-2:]}
    kept |= {one["id"] for one in newest[:KEEP_RELEASES]}
    expired = [one for one in newest if one["id"] not in kept]
    venvs = {one["venv"] for one in newest if one["id"] in kept} | {release.venv_id}
    return (
        *(f"/opt/qwen-deploy/releases/{one['id']}" for one in expired),
        *sorted(
            {f"/opt/qwen-deploy/venvs/{one['venv']}" for one in expired if one["venv"] not in venvs}
        ),
    )
