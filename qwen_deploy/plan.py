"""Facts and a release to the steps that are missing. Pure; knows not how a step is carried out."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_deploy.facts import Facts
from qwen_deploy.preflight import missing_bytes
from qwen_deploy.release import Release

KEEP_RELEASES = 5


@dataclass(frozen=True, slots=True)
class Step:
    stage: str
    summary: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What `up` would do on one host. Without steps the host is as wanted, though unproven."""

    host: str
    release: str
    previous: str | None
    steps: tuple[Step, ...]
    must_restart: bool
    transfer_bytes: int
    expired: tuple[str, ...]

    @property
    def is_unchanged(self) -> bool:
        return not self.steps


def make(host: str, facts: Facts, release: Release, wanted: dict[str, str]) -> Plan:
    """`wanted` maps every managed path to the digest it should have."""
    differing = tuple(path for path, digest in wanted.items() if facts.digests.get(path) != digest)
    transfer = missing_bytes(facts, release)
    if not facts.digests.get(f"{release.model_dir}/manifest.json"):
        transfer = release.manifest.total_bytes
    must_restart = _must_restart(facts)
    steps = (
        *_host_steps(facts, tuple(path for path in differing if wanted[path] == "directory")),
        *_runtime_steps(release, differing),
        *((Step("weights", f"send {_megabytes(transfer)}"),) if transfer else ()),
        *_service_steps(facts, release, differing),
        *((Step("unit", _unit_summary(facts)),) if must_restart else ()),
    )
    return Plan(
        host=host,
        release=release.id,
        previous=facts.current,
        steps=steps,
        must_restart=must_restart,
        transfer_bytes=transfer,
        expired=_expired(facts, release),
    )


def _host_steps(facts: Facts, directories: tuple[str, ...]) -> tuple[Step, ...]:
    missing = [name for name, is_there in facts.packages.items() if not is_there]
    return (
        *((Step("host", f"install {', '.join(missing)}"),) if missing else ()),
        *((Step("host", "create the system user and directories"),) if directories else ()),
    )


def _runtime_steps(release: Release, differing: tuple[str, ...]) -> tuple[Step, ...]:
    steps = []
    if f"{release.venv_dir}/.complete" in differing:
        steps.append(Step("runtime", f"build the {release.accelerator} environment"))
    if any(path.endswith("/pip.conf") for path in differing):
        steps.append(Step("runtime", "write the pip configuration"))
    return tuple(steps)


def _service_steps(facts: Facts, release: Release, differing: tuple[str, ...]) -> tuple[Step, ...]:
    if facts.current != release.id:
        return (Step("service", f"release {facts.current or 'none'} -> {release.id}"),)
    ours = (release.directory, "/etc/systemd/")
    drifted = [path for path in differing if path.startswith(ours)]
    return (Step("service", f"repair {', '.join(drifted[:3])}"),) if drifted else ()


def _must_restart(facts: Facts) -> bool:
    """The unit should run the current release and does not, or does not answer."""
    if facts.current is None:
        return False
    socket = facts.units.get("qwen.socket", {})
    is_up = facts.unit_state == "active" and socket.get("ActiveState") == "active"
    is_enabled = facts.unit.get("UnitFileState") == "enabled"
    answer = facts.answer
    # An `up` that was killed may have left an older release running.
    is_ready = answer is not None and answer.is_ready and answer.release == facts.current
    return not (is_up and is_enabled and is_ready and facts.unit.get("NeedDaemonReload") == "no")


def _unit_summary(facts: Facts) -> str:
    answer = facts.answer
    if facts.unit_state == "active" and answer and not answer.is_ready:
        return f"restart: {answer.completion_error or answer.reason or 'not ready'}"
    if facts.unit_state == "active" and answer and answer.release != facts.current:
        return f"restart: it still serves {answer.release}"
    return f"start: it is {facts.unit_state}"


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


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"
