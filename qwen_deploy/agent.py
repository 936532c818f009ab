"""The host's weights program as one file that its python3 runs, and its runs in the foreground.
What it does is service/qwen_weights."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_deploy import bundle, commands
from qwen_deploy.errors import NeedsAttention, QwenDeployError, UsageError
from qwen_deploy.release import ROOT, STATE
from qwen_deploy.remote import Session

_MAIN = """\
import sys

from qwen_weights.__main__ import main

sys.exit(main())
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest that zip knows: the same sources give the same bytes
# Terabytes may have to be read, and nothing is printed meanwhile.
_LONGEST_SECONDS = 6 * 3600.0
# Exit codes that speak of what was to be read (qwen_weights.errors): manifest, missing, model.
_OF_INPUT = (2, 11, 19)
_RELEASES = f"{ROOT}/releases"


def pack_agent(package_dir: Path) -> bytes:
    """`package_dir` is the folder of the package `qwen_weights`."""
    sources = {
        f"{package_dir.name}/{path.relative_to(package_dir).as_posix()}": path.read_bytes()
        for path in package_dir.rglob("*.py")
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted({"__main__.py": _MAIN.encode(), **sources}.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, whatever packs it
            archive.writestr(entry, content)
    return packed.getvalue()


def archive(files: Mapping[str, bytes]) -> bytes:
    """The program, with the files it is to find beside it, as tar."""
    program = {"agent.pyz": pack_agent(bundle.weights_dir())}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        for name, content in {**program, **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def verify(session: Session, *, quick: bool) -> tuple[Mapping[str, Any], ...]:
    """A verdict for every revision that lies on the host, or that one of its releases needs."""
    options = ["--json", *(["--quick"] if quick else [])]
    return tuple(
        _json(session, ["verify", *options, model["directory"]], may_fail=True)
        if model["is_there"]
        else _missing(model)
        for model in listing(session)["models"]
    )


def _missing(model: Mapping[str, Any]) -> Mapping[str, Any]:
    needed = f"is gone, and {', '.join(model['used_by'])} needs it"
    shown = ("model", "revision", "directory", "bytes", "proof", "is_there")
    problem = {"path": "", "what": needed, "ranges": []}
    return {**{name: model[name] for name in shown}, "ok": False, "problems": [problem]}


def index(session: Session, path: str, model: str) -> Mapping[str, Any]:
    """What a folder or an archive on the host holds: see `index` of the weights program."""
    options = ["--model", model, "--cache", f"{STATE}/index.json"]
    return _json(session, ["index", *options, path])


def listing(session: Session) -> Mapping[str, Any]:
    return _json(session, ["list", "--root", STATE, "--releases", _RELEASES])


def prune(session: Session, *, dry_run: bool) -> Mapping[str, Any]:
    # Wheels of a bundle too: the environments that were made of them need them no more.
    options = ["--wheels", *(["--dry-run"] if dry_run else [])]
    return _json(session, ["prune", "--root", STATE, "--releases", _RELEASES, *options])


def _json(
    session: Session, arguments: Sequence[str], *, may_fail: bool = False
) -> Mapping[str, Any]:
    """What it printed; with `may_fail` the verdict counts and not the exit status."""
    stdin = archive({})
    done = session.run(commands.agent(arguments), root=True, stdin=stdin, timeout=_LONGEST_SECONDS)
    if done.ok or (may_fail and done.stdout.strip()):
        # Lines of progress may come before the answer.
        answer: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
    if done.exit_status in _OF_INPUT:
        raise _refused(session, done.stderr)
    raise failed(session, done.stderr, f"weights {arguments[0]}")


def _refused(session: Session, stderr: str) -> UsageError:
    """In the program's own words: what it was asked to read is not what it should be."""
    said = dict(line.split(": ", 1) for line in stderr.splitlines() if ": " in line)
    return UsageError(
        f"`{session.host}`: {said.get('error', stderr.strip())}",
        host=session.host.name,
        state=f"{session.host} was not changed",
        hint=said.get("hint"),
    )


def failed(session: Session, stderr: str, what: str) -> QwenDeployError:
    *lines, last = stderr.strip().splitlines() or [""]
    hint = last.removeprefix("hint: ") if last.startswith("hint: ") else None
    return NeedsAttention(
        f"`{what}` failed on `{session.host}`",
        host=session.host.name,
        state=f"{session.host} was not changed",
        hint=hint,
        evidence=tuple((lines if hint else [*lines, last])[-5:]),
        origin=f"standard error on {session.host}",
    )
