"""Which revision the hosts are to hold, and from where: what they hold already, else what its
source says now. Starts no transfer.

The hosts are the record of what was chosen: `up` again asks no hub, and a new host gets what the
others have.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwen_weights.checkpoint import is_weights, some
from qwen_weights.manifest import Manifest

from qwen_deploy import agent, netproxy, parallel, sources
from qwen_deploy import facts as host_facts
from qwen_deploy import supply as supplies
from qwen_deploy.airgap import Bundle
from qwen_deploy.config import Deployment
from qwen_deploy.errors import QwenDeployError, Refused, UsageError
from qwen_deploy.hashes import Progress
from qwen_deploy.prospect import ask
from qwen_deploy.remote import Session
from qwen_deploy.sources import UNVERIFIED, HubUnreachable, Pinned
from qwen_deploy.supply import Supply

# Where there is no network, nobody shall wait for one.
IMPATIENT = sources.Patience(tries=1, connect_seconds=3.0)
HUBS = ("auto", "modelscope", "huggingface", "git-lfs")
Entries = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """`local` are sources that only one host has, by host; `is_held`: the hosts themselves said
    what it is, so that no source was asked yet; `is_reached`: this machine reaches the source;
    `asks_hub`: what came without checksums may be compared with one."""

    pinned: Pinned
    local: Mapping[str, Entries] = field(default_factory=dict)
    is_held: bool = False
    is_reached: bool = False
    asks_hub: bool = True

    def noted(self, note: str) -> Choice:
        return replace(self, pinned=replace(self.pinned, notes=(*self.pinned.notes, note)))


def here(deployment: Deployment, progress: Progress | None = None) -> Choice | None:
    """What lies on this machine can be told before any host is asked; None for the rest."""
    source = deployment.model.source
    is_here = sources.parse(source).kind == "path"
    near = difflib.get_close_matches(source, HUBS, n=1)
    is_slip = is_here and near and "/" not in source
    if is_slip and not Path(source).expanduser().exists():
        raise UsageError(f"model/source: {source}: no such folder; did you mean `{near[0]}`?")
    return Choice(_ask(deployment, None, progress=progress)) if is_here else None


def of_bundle(bundle: Bundle) -> Choice:
    return Choice(Pinned(bundle.model, (), bundle), asks_hub=False)


def choose(sessions: Sequence[Session], deployment: Deployment, *, refresh: bool) -> Choice:
    """Of a model that does not lie on this machine."""
    source = sources.parse(deployment.model.source)
    if source.kind == "host":
        return _on_hosts(sessions, deployment, source.place)
    held = () if refresh else _held(sessions, deployment)
    stays = max(held, key=_Held.weight, default=None)
    if stays and (stays.is_served or stays.is_proven):
        return Choice(Pinned(stays.manifest, (), None), is_held=True)
    try:
        return _listed(sessions, deployment, None)
    except HubUnreachable:
        # Without a hub, what lies there is all there is, if it is beyond doubt.
        if len({one.manifest.revision for one in held}) != 1:
            raise
        return Choice(Pinned(held[0].manifest, (), None), is_held=True)


def supply(
    needy: Sequence[Session], deployment: Deployment, choice: Choice, *, is_held: bool
) -> Supply:
    """How the hosts that need bytes get them; `is_held` says that some host has all of them.

    Raises Refused where they can come from nowhere."""
    if needy and choice.is_held:
        choice = _with_upstreams(needy, deployment, choice, is_held=is_held)
    if needy and choice.asks_hub and choice.pinned.manifest.proof == "none":
        choice = replace(choice, pinned=_against_hub(choice.pinned, deployment))
    found = supplies.look(needy, deployment, choice.pinned, choice.local)
    if needy and not is_held and (found.is_denied or not found.is_reached):
        if found.is_denied or not choice.is_reached:
            raise supplies.refusal(needy[0], found)
        return replace(found, lends_network=True)
    return found


def _with_upstreams(
    sessions: Sequence[Session], deployment: Deployment, choice: Choice, *, is_held: bool
) -> Choice:
    """The sources of a revision that some host knew; they may no longer have it."""
    held = choice.pinned.manifest
    try:
        found = _listed(sessions, deployment, held.origin.commit if held.origin else None)
    except QwenDeployError:
        if is_held:
            return choice
        raise
    if found.pinned.manifest.artifacts == held.artifacts:
        return replace(found, pinned=replace(found.pinned, manifest=held))
    if is_held:
        return choice
    raise UsageError(
        f"{held.model}: the hub no longer has the revision that the hosts hold in part "
        f"({held.revision}; now {found.pinned.manifest.revision})",
        hint="take the new one: the same command with --refresh",
    )


def _against_hub(pinned: Pinned, deployment: Deployment) -> Pinned:
    """What was carried by hand, compared with what a hub says of the same name, if one answers.
    Raises Refused where it says something else."""
    asked = deployment.model.model_copy(update={"source": "auto"})
    try:
        found = _ask(deployment.model_copy(update={"model": asked}), None, patience=IMPATIENT)
    except QwenDeployError as error:
        return replace(pinned, notes=(*pinned.notes, f"not compared with a hub: {error.message}"))
    listed = {one.path: one.sha256 for one in found.manifest.artifacts}
    own = pinned.manifest.artifacts
    strange = [one.path for one in own if one.path not in listed]
    other = [one.path for one in own if listed.get(one.path, one.sha256) != one.sha256]
    other += [path for path in strange if is_weights(path)]
    name = found.manifest.model
    if other:
        raise Refused(
            f"{deployment.model.source} is not {name}: a hub that has it says other bytes for "
            f"{some(other)}",
            state="nothing was started",
            hint="damaged: --weights huggingface or --weights modelscope brings the hub's; "
            "a checkpoint of your own: another name, --model",
        )
    kept = tuple(note for note in pinned.notes if not note.startswith(UNVERIFIED))
    if strange:
        note = f"{UNVERIFIED}: {name} of the hub has no {some(strange)}"
        return replace(pinned, notes=(*kept, note))
    return replace(pinned, manifest=replace(pinned.manifest, proof="hub"), notes=kept)


@dataclass(frozen=True, slots=True)
class _Held:
    manifest: Manifest
    is_served: bool

    @property
    def is_proven(self) -> bool:
        """All of it came here once, and was what a hub or a list of checksums says."""
        return self.manifest.verified_at is not None and self.manifest.proof in ("hub", "sums")

    def weight(self) -> tuple[bool, bool, str]:
        """What is served stays before what is only held, and of that what came last."""
        return self.is_served, self.is_proven, self.manifest.verified_at or ""


def _held(sessions: Sequence[Session], deployment: Deployment) -> tuple[_Held, ...]:
    """What lies on the hosts and is what the deployment asks for, in the order of the hosts."""
    model = deployment.model
    question = host_facts.question((), service=None, probe="none", model=model.name)
    found = []
    for facts in parallel.each(sessions, lambda session: ask(session, question)):
        if isinstance(facts, QwenDeployError):
            raise facts
        current = facts.current_release or {}
        found += [
            _Held(manifest, manifest.revision == current.get("revision"))
            for manifest in facts.models
            if _is_asked(manifest, deployment)
        ]
    return tuple(found)


def _is_asked(manifest: Manifest, deployment: Deployment) -> bool:
    model, origin = deployment.model, manifest.origin
    if origin is None or manifest.model != model.name:
        return False
    is_same = model.revision in (origin.requested, origin.commit)
    wanted = model.source.partition("+")[0]
    return is_same and (wanted in ("auto", origin.source) or "://" in wanted)


def _listed(sessions: Sequence[Session], deployment: Deployment, revision: str | None) -> Choice:
    """Asked from here; where that is impossible, from here through the first host."""
    try:
        return Choice(_ask(deployment, revision), is_reached=True)
    except HubUnreachable as error:
        if not sessions:
            raise
        unreachable = error
    try:
        with netproxy.serve(sessions[0].dial) as proxy:
            return Choice(_ask(deployment, revision, sources.through(proxy)))
    except HubUnreachable as error:
        raise HubUnreachable(
            f"{unreachable.message}; nor through `{sessions[0].host}`: {error.message}",
            hint=unreachable.hint,
        ) from error


def _ask(
    deployment: Deployment,
    revision: str | None,
    network: sources.Network = sources.direct,
    patience: sources.Patience | None = None,
    progress: Progress | None = None,
) -> Pinned:
    model, weights = deployment.model, deployment.weights
    settings = sources.Settings(
        source=model.source,
        name=model.name,
        revision=revision or model.revision,
        huggingface_endpoint=weights.huggingface_endpoint,
        modelscope_endpoint=weights.modelscope_endpoint,
        huggingface_token_file=weights.huggingface_token_file,
        modelscope_token_file=weights.modelscope_token_file,
        proxy=weights.proxy,
        ca_file=weights.ca_file,
    )
    return sources.pin(settings, network=network, patience=patience, progress=progress)


def _on_hosts(sessions: Sequence[Session], deployment: Deployment, path: str) -> Choice:
    """A folder or an archive on hosts: those that lack it read from those that have it."""
    asked = parallel.each(sessions, lambda session: _index(session, path, deployment.model.name))
    found = {
        session.host.name: one
        for session, one in zip(sessions, asked, strict=True)
        if not isinstance(one, QwenDeployError)
    }
    if not found:
        raise next(one for one in asked if isinstance(one, QwenDeployError))
    chosen = next(iter(found.values()))
    same = {
        name: tuple(upstream.entry for upstream in one.upstreams)
        for name, one in found.items()
        if one.manifest.artifacts == chosen.manifest.artifacts
    }
    others = ", ".join(sorted(found.keys() - same.keys()))
    notes = (f"{path} differs between {next(iter(same))} and {others}",) if others else ()
    return Choice(replace(chosen, upstreams=(), notes=(*chosen.notes, *notes)), same)


def _index(session: Session, path: str, model: str) -> Pinned:
    return sources.from_index(path, agent.index(session, path, model))
