"""What hosts hold of one model revision, and whether the rest fits. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_weights import manifest as manifests
from qwen_weights.manifest import Manifest

from qwen_deploy import facts as host_facts
from qwen_deploy import parallel, preflight
from qwen_deploy.errors import QwenDeployError, Refused
from qwen_deploy.facts import Facts
from qwen_deploy.prospect import ask, untouched
from qwen_deploy.release import model_dir, staging_dir
from qwen_deploy.remote import Session


@dataclass(frozen=True, slots=True)
class Holding:
    """`holds` says that the whole revision is there, by names and sizes."""

    session: Session
    facts: Facts
    holds: bool
    missing_bytes: int

    @property
    def host(self) -> str:
        return self.session.host.name


def survey(
    sessions: Sequence[Session], manifest: Manifest
) -> tuple[Holding | QwenDeployError, ...]:
    """In one round trip a host. A host whose disk is too small stands there as Refused."""
    folder = model_dir(manifest)
    question = host_facts.question(
        (),
        service=None,
        probe="none",
        model=manifest.model,
        trees=(folder, staging_dir(manifest)),
        host_paths=(f"{folder}/{manifests.NAME}",),
    )

    def look(session: Session) -> Holding:
        facts = ask(session, question)
        finding = preflight.weights_room(facts, manifest)
        if finding:
            message = f"`{session.host}`: {finding.message}"
            raise untouched(Refused, message, session, hint=finding.hint)
        holds = preflight.has_weights(facts, manifest)
        missing = 0 if holds else preflight.missing_bytes(facts, manifest)
        return Holding(session, facts, holds, missing)

    return parallel.each(sessions, look)
