"""Fakes of our own protocols: a host behind a session, and a converge that acts on that host.

They keep a host's state, so that a test says what happened to a host and not which calls came.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen_weights import manifest
from qwen_weights.manifest import Artifact

from qwen_deploy import commands, config, facts, prospect, release
from qwen_deploy.config import Deployment
from qwen_deploy.converge import Converged
from qwen_deploy.errors import Unreachable
from qwen_deploy.facts import Facts
from qwen_deploy.inventory import Host
from qwen_deploy.keys import UserKey
from qwen_deploy.prospect import Wanted
from qwen_deploy.release import Release
from qwen_deploy.remote import Completed, Session
from qwen_deploy.sources import Pinned

HOST = Host("gpu-1", "192.0.2.1", "root")
MODEL = "Qwen/Qwen2.5-7B-Instruct"
MANIFEST = manifest.make(MODEL, [Artifact("config.json", 100, "a" * 64)])
USER_KEY = UserKey("sk-made-for-this-test", is_made=True)

_IDLE_UNIT = {
    "ActiveState": "inactive",
    "SubState": "dead",
    "Result": "success",
    "StatusText": "",
    "MainPID": "0",
    "NRestarts": "0",
    "ExecMainStatus": "0",
    "UnitFileState": "",
    "FragmentPath": "",
    "NeedDaemonReload": "no",
}
_ACTIVE = {
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "FragmentPath": "/etc/systemd/system/qwen.service",
}
ACTIVE_UNIT = {**_IDLE_UNIT, **_ACTIVE, "SubState": "running", "MainPID": "4242"}
_FAILED = {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "1"}
FAILED_UNIT = {**_IDLE_UNIT, **_ACTIVE, **_FAILED}
STARTING_UNIT = {**ACTIVE_UNIT, "ActiveState": "activating", "SubState": "start"}
ACTIVE_SOCKET = {**_IDLE_UNIT, **_ACTIVE, "SubState": "listening"}
NOTHING_LISTED: dict[str, Any] = {
    **dict.fromkeys(("models", "unfinished"), ()),
    **dict.fromkeys(("partial_bytes", "wheels_bytes"), 0),
}


def deployment(**sections: Mapping[str, Any]) -> Deployment:
    return config.parse({"runtime": {"accelerator": "cpu"}, **sections}, origin="test")


def release_of(**sections: Mapping[str, Any]) -> Release:
    return release.make(deployment(**sections), MANIFEST, "cpu")


def raw_facts(**changes: Any) -> dict[str, Any]:
    """What host_side/facts.py prints on a good host that serves nothing, but for `changes`."""
    disk = {"mount": "/", "free_bytes": 50_000_000_000, "total_bytes": 60_000_000_000}
    return {
        "sudo": False,
        "address": "192.0.2.1",
        "machine": "x86_64",
        "os": {"ID": "debian", "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)"},
        "has_systemd": True,
        "python": [3, 11, 2],
        "runtime_python": [3, 11],
        "memory_bytes": 16_000_000_000,
        "time": 1_760_000_000.0,
        "boot_id": "b1",
        "disks": {path: disk | {"free_inodes": 1000} for path in (release.ROOT, release.STATE)},
        "packages": dict.fromkeys(facts.PACKAGES, True),
        "has_apt": True,
        "gpus": [],
        "port_owner": None,
        "current": None,
        "releases": [],
        "audit": [],
        "digests": {},
        "trees": {},
        "models": [],
        "partials": {},
        "keys": [],
        "units": {name: dict(_IDLE_UNIT) for name in commands.UNITS},
        "process": None,
        "service": None,
        **changes,
    }


def facts_of(**changes: Any) -> Facts:
    return facts.parse(json.dumps(raw_facts(**changes)))


def answers(release_id: str, *, completion: bool = True) -> dict[str, Any]:
    """What the service says of itself once it is ready."""
    told: dict[str, Any] = {
        "ok": completion,
        "status": 200 if completion else 500,
        "error": None,
        "seconds": 0.1,
    }
    if not completion:
        told["error"] = {"error": {"message": "out of memory"}}
    ready = {"status": "ready", "release": release_id, "model": MODEL}
    return {"status": 200, "ready": ready, "completion": told}


def lying(there: Release, **changes: Any) -> dict[str, Any]:
    """A release that lies on a host, as the facts tell of it."""
    return {**there.content, "id": there.id, "venv": there.venv_id, **changes}


def serving(wanted: Release, made: Deployment, **changes: Any) -> dict[str, Any]:
    """`raw_facts` of a host that serves this release, as `up` leaves it."""
    return raw_facts(
        **{
            "current": wanted.id,
            "releases": [lying(wanted, made_at=1.0)],
            "digests": digests(wanted, made),
            "trees": trees(wanted),
            "units": {"qwen.service": ACTIVE_UNIT, "qwen.socket": ACTIVE_SOCKET},
            "service": answers(wanted.id),
            **changes,
        }
    )


def trees(wanted: Release) -> dict[str, dict[str, int]]:
    artifacts = wanted.manifest.artifacts
    return {wanted.model_dir: {artifact.path: artifact.size for artifact in artifacts}}


def digests(wanted: Release, made: Deployment) -> dict[str, str]:
    return {
        **release.host_state(made),
        **wanted.managed,
        f"{wanted.model_dir}/manifest.json": "f" * 64,
        prospect.OPERATOR_KEY: "e" * 64,
    }


@dataclass
class FakeHost:
    """A host's state, changed by `FakeConverge` and read through `FakeSession`.

    `story` tells what was asked of it, in order. After its entry `lost_after` the connection is
    lost. A release in `broken` fails, one in `slow` never gets beyond starting."""

    wanted: Wanted
    host: Host = HOST
    raw: dict[str, Any] = field(default_factory=raw_facts)
    locked_by: Mapping[str, Any] | None = None
    broken: set[str] = field(default_factory=set)
    slow: set[str] = field(default_factory=set)
    journal: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    lost_after: str | None = None
    story: list[str] = field(default_factory=list)
    transfer: dict[str, Any] | None = None
    removed: set[str] = field(default_factory=set)
    order: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    probed: list[dict[str, Any]] = field(default_factory=list)
    reaches_peers: bool = True
    is_receiving: bool = False
    is_busy: bool = False
    is_going_down: bool = False
    listing: dict[str, Any] = field(default_factory=dict)

    @property
    def release(self) -> Release:
        return self.wanted.releases["cpu"]

    @property
    def current(self) -> str | None:
        current: str | None = self.raw["current"]
        return current

    @property
    def audit(self) -> list[dict[str, Any]]:
        audit: list[dict[str, Any]] = self.raw["audit"]
        return audit

    def note(self, what: str) -> None:
        if self.is_lost:
            raise Unreachable(
                f"lost the connection to `{self.host}`: it was closed", host=self.host.name
            )
        self.story.append(what)

    @property
    def is_lost(self) -> bool:
        return self.lost_after is not None and self.lost_after in self.story

    def serve(self, release_id: str | None) -> None:
        """Makes a release current and starts it."""
        unit = FAILED_UNIT if release_id in self.broken else ACTIVE_UNIT
        unit = STARTING_UNIT if release_id in self.slow else unit
        self.raw["current"] = release_id
        self.raw["units"] = {"qwen.service": unit, "qwen.socket": ACTIVE_SOCKET}
        self.raw["service"] = answers(release_id) if unit is ACTIVE_UNIT and release_id else None

    def has_proven(self, release_id: str) -> None:
        """As if an earlier `up` had brought this release here."""
        changes = {"lock": "0" * 64, "venv": "0" * 16, "made_at": 1.0}
        self.raw["releases"].append(lying(self.release, id=release_id, **changes))
        self.audit.append({"release": release_id, "proven": True})
        self.serve(release_id)

    def has_weights(self) -> None:
        self.raw["digests"][f"{self.release.model_dir}/manifest.json"] = "f" * 64
        self.raw["trees"] = trees(self.release)

    def converge_up(self, variables: Mapping[str, Any]) -> None:
        release_id = variables["qwen_service_release"]
        assert release_id == self.release.id
        assert variables["qwen_runtime_venv_id"] == self.release.venv_id
        self.raw["releases"].append(lying(self.release, made_at=2.0))
        self.has_weights()
        self.raw["digests"] |= digests(self.release, self.wanted.deployment)
        self.raw["keys"] = [["operator", "0" * 64], ["default", "1" * 64]]
        self.serve(release_id)


class FakeSession(Session):
    """Answers what a host answers to the commands of `commands`."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host.host
        self.fake = host

    @property
    def user(self) -> str:
        return "root"

    def close(self) -> None:
        pass

    def run(
        self, argv: Sequence[str], *, root: bool = False, stdin: bytes = b"", timeout: float = 120
    ) -> Completed:
        if argv[:-1] == commands.facts({})[:-1]:
            self.fake.note("facts")
            return self._facts(json.loads(argv[-1]))
        if argv[:-1] == commands.record({})[:-1]:
            self.fake.note("record")
            self.fake.audit.append(json.loads(argv[-1]))
        elif argv[0] == "journalctl":
            self.fake.note("journal")
            return Completed(0, "".join(f"{line}\n" for line in self.fake.journal), "")
        elif argv[:-1] == commands.read_file("")[:-1]:
            content = self.fake.files.get(argv[-1])
            return Completed(0 if content is not None else 1, content or "", "")
        elif argv == commands.transfer_status():
            return Completed(0, f"{json.dumps(self.fake.transfer)}\nactive\n", "")
        elif argv[:-1] == commands.has_folder("")[:-1]:
            return Completed(int(argv[-1] in self.fake.removed), "", "")
        elif argv == commands.cancel_transfer():
            self.fake.note("close door")
        elif argv == commands.stop_transfer():
            self.fake.note("stop weights")
        elif commands.TRANSFER_UNIT in argv:
            return self._start_transfer(stdin)
        elif argv[:5] == commands.agent(["probe"])[:5]:
            return Completed(0, json.dumps({"sources": self.fake.probed}), "")
        elif argv[:5] == commands.agent(["list"])[:5]:
            return Completed(0, json.dumps({**NOTHING_LISTED, **self.fake.listing}), "")
        elif argv[:4] == commands.reach([]):
            told = "yes" if self.fake.reaches_peers else "no"
            return Completed(0, f"{told}\n" * ((len(argv) - 4) // 2), "")
        elif argv == commands.replace_secret(commands.TRANSFER_SOURCES):
            self.fake.sources = json.loads(stdin)["sources"]
        return Completed(0, "", "")

    def _start_transfer(self, archive: bytes) -> Completed:
        if self.fake.is_busy or self.fake.is_going_down:
            code = commands.BUSY if self.fake.is_busy else commands.GOING_DOWN
            return Completed(code, "", "")
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            order = files.extractfile("order.json")
            self.fake.order = json.load(order) if order else {}
        self.fake.files[commands.TRANSFER_ORDER] = json.dumps(self.fake.order)
        self.fake.note("start weights")
        return Completed(0, "joined\n" if self.fake.is_receiving else "started\n", "")

    def stream(self, argv: Sequence[str], *, root: bool = False) -> Iterator[str]:
        for line in self.fake.journal:
            self.fake.note("line")
            yield line

    def _facts(self, question: Mapping[str, Any]) -> Completed:
        service = self.fake.raw["service"]
        if service and question["probe"] != "completion":
            service = {key: value for key, value in service.items() if key != "completion"}
        told = {
            **self.fake.raw,
            "service": service if question["probe"] != "none" else None,
            "digests": {path: self.fake.raw["digests"].get(path) for path in question["paths"]},
        }
        return Completed(0, json.dumps(told), "")

    @contextlib.contextmanager
    def hold(self, argv: Sequence[str]) -> Iterator[tuple[str, int | None]]:
        self.fake.note("lock")
        if self.fake.locked_by is not None:
            yield json.dumps(self.fake.locked_by), 75
            return
        yield "held", None
        self.fake.story.append("unlock")

    @contextlib.contextmanager
    def forward_remote(self, local_port: int) -> Iterator[int]:
        yield local_port

    @contextlib.contextmanager
    def forward_local(self, port: int, address: str = "127.0.0.1") -> Iterator[int]:
        yield port


class FakeConverge:
    """Acts on a fake host as the playbooks do. `failures` says which playbook fails, and how;
    one that fails changes nothing unless it is also named in `late`."""

    def __init__(
        self, host: FakeHost, failures: Mapping[str, Converged] | None = None, late: str = ""
    ) -> None:
        self.host = host
        self.failures = failures or {}
        self.late = late
        self.files: Mapping[str, bytes] = {}
        self.variables: Mapping[str, Any] = {}

    def apply(
        self,
        playbook: str,
        variables: Mapping[str, Any],
        *,
        files: Mapping[str, bytes] | None = None,
        is_canceled: Callable[[], bool] = lambda: False,
    ) -> Converged:
        if self.host.is_lost:
            return Converged("unreachable", 0, "Copy uv", "")
        self.host.story.append(playbook)
        self.files, self.variables = files or {}, variables
        if is_canceled():
            return Converged("canceled", 0, "Copy uv", "")
        failure = self.failures.get(playbook)
        if failure is None or playbook == self.late:
            self._change(playbook, variables)
        return failure or Converged("done", 3)

    def _change(self, playbook: str, variables: Mapping[str, Any]) -> None:
        if playbook == "up.yml":
            self.host.converge_up(variables)
        elif playbook == "rollback.yml":
            self.host.serve(variables["qwen_service_release"])
        elif playbook == "restart.yml":
            self.host.serve(self.host.current)
        elif playbook == "stop.yml":
            self.host.raw["service"] = None
        elif playbook == "down.yml":
            self.host.raw |= {"current": None, "releases": [], "service": None}


def wanted_of() -> Wanted:
    return prospect.want(deployment(), pinned(), USER_KEY)


def pinned() -> Pinned:
    """Weights that every host has, so that none is read."""
    return Pinned(MANIFEST, (), None)
