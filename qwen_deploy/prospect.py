"""One host before it is touched: facts, plan and findings, from one SSH round trip.

Changes nothing, and does not know how a change is carried out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_weights import manifest as manifests

from qwen_deploy import bundle as assets
from qwen_deploy import commands, keys, plan, preflight, release
from qwen_deploy import facts as host_facts
from qwen_deploy.airgap import Bundle
from qwen_deploy.config import Deployment
from qwen_deploy.errors import QwenDeployError, Refused
from qwen_deploy.facts import Facts
from qwen_deploy.release import Release
from qwen_deploy.remote import Session
from qwen_deploy.sources import Pinned

EVIDENCE_LINES = 5
OPERATOR_KEY = f"{release.ETC}/operator.key"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every host is to serve; `releases` by accelerator. With a bundle nothing comes from a
    network, and `uv` is the bundle's."""

    deployment: Deployment
    pinned: Pinned
    releases: Mapping[str, Release]
    user_key: keys.UserKey
    bundle: Bundle | None
    uv: Path

    @property
    def packages(self) -> tuple[str, ...]:
        """Of the operating system; where nothing is fetched, nothing is needed to fetch it."""
        return () if self.bundle else host_facts.PACKAGES

    def release_for(self, facts: Facts) -> Release:
        accelerator = self.deployment.runtime.accelerator
        if accelerator == "auto":
            accelerator = "cuda" if facts.gpus else "cpu"
        return self.releases[accelerator]


@dataclass(frozen=True, slots=True)
class Prospect:
    """One host before it is touched."""

    session: Session
    facts: Facts
    release: Release
    plan: plan.Plan
    findings: tuple[preflight.Finding, ...]
    key_files: keys.KeyFiles | None

    @property
    def host(self) -> str:
        return self.session.host.name

    @property
    def is_unchanged(self) -> bool:
        """Nothing to do, and proven so: the completion came back in the same round trip."""
        answer = self.facts.answer
        is_proven = answer is not None and answer.is_ready and answer.release == self.release.id
        return self.plan.is_unchanged and is_proven


def want(
    deployment: Deployment,
    pinned: Pinned,
    user_key: keys.UserKey,
    *,
    bundle: Bundle | None = None,
    uv: Path | None = None,
) -> Wanted:
    accelerator = deployment.runtime.accelerator
    candidates = ("cpu", "cuda") if accelerator == "auto" else (accelerator,)
    made = {one: release.make(deployment, pinned.manifest, one) for one in candidates}
    return Wanted(deployment, pinned, made, user_key, bundle, uv or assets.uv_path())


def look(session: Session, wanted: Wanted) -> Prospect:
    """Everything about one host, in one SSH round trip."""
    host_state = release.host_state(wanted.deployment)
    facts = ask(session, _question(wanted, host_state))
    chosen = wanted.release_for(facts)
    key_files = _key_files(facts, wanted)
    managed = {**host_state, **chosen.managed}
    host = session.host.name
    return Prospect(
        session=session,
        facts=facts,
        release=chosen,
        plan=plan.make(
            host, facts, chosen, managed, writes_keys=key_files is not None, bundle=wanted.bundle
        ),
        findings=preflight.inspect(facts, chosen, wanted.deployment.service, wanted.bundle),
        key_files=key_files,
    )


def _question(wanted: Wanted, host_state: Mapping[str, str]) -> Mapping[str, Any]:
    releases = tuple(wanted.releases.values())
    brought = [wanted.pinned.manifest, *([wanted.bundle.wheels] if wanted.bundle else [])]
    folders = [release.model_dir(manifest) for manifest in brought]
    records = [f"{folder}/{manifests.NAME}" for folder in folders]
    return host_facts.question(
        releases,
        service=wanted.deployment.service,
        python=wanted.deployment.runtime.python,
        host_paths=(*host_state, *records, OPERATOR_KEY),
        trees=[*folders, *(release.staging_dir(manifest) for manifest in brought)],
        packages=wanted.packages,
        model=wanted.pinned.manifest.model,
    )


def ask(session: Session, question: Mapping[str, Any]) -> Facts:
    """Raises Refused where the host's own Python cannot answer."""
    done = session.run(commands.facts(question), root=True)
    if done.ok:
        return host_facts.parse(done.stdout)
    if done.exit_status == commands.NO_PYTHON:
        message = f"`{session.host}` has no python3, which Ansible needs"
        raise untouched(Refused, message, session, hint="apt-get install python3")
    version = session.run(["python3", "--version"]).stdout.strip()
    raise untouched(
        Refused,
        f"the facts of `{session.host}` cannot be read by its {version or 'python3'}",
        session,
        evidence=tuple(done.stderr.strip().splitlines()[-EVIDENCE_LINES:]),
        origin="standard error of the facts program",
    )


def untouched(
    kind: type[QwenDeployError], message: str, session: Session, **more: Any
) -> QwenDeployError:
    name = session.host.name
    return kind(message, host=name, state=f"{name} was not changed", **more)


def _key_files(facts: Facts, wanted: Wanted) -> keys.KeyFiles | None:
    if not wanted.deployment.service.auth:
        return None
    has_operator_key = facts.digests.get(OPERATOR_KEY) is not None
    return keys.complete(facts.keys, wanted.user_key, has_operator_key=has_operator_key)


def refuse(prospect: Prospect) -> None:
    """Raises the refusals of preflight, the first as the message and all of them as evidence."""
    refusals = [finding for finding in prospect.findings if finding.level == "refusal"]
    if refusals:
        more = tuple(f"{one.message}; {one.hint}" for one in refusals[1:])
        raise untouched(
            Refused,
            f"`{prospect.host}`: {refusals[0].message}",
            prospect.session,
            hint=refusals[0].hint,
            evidence=more,
            origin="preflight, the other refusals" if more else None,
        )
