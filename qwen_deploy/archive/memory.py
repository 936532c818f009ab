"""What was found of archives before, by their stamps: a compressed one is read to its end for it. A
cache and no state. Does not know how archives are read."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from qwen_weights import manifest as manifests
from qwen_weights.archives import Member
from qwen_weights.errors import BadManifest
from qwen_weights.manifest import Manifest

from qwen_deploy import hashes
from qwen_deploy.hashes import Stamp

SCHEMA = 2
_NAME = "archives.json"
_MOST_ARCHIVES = 100


@dataclass(frozen=True, slots=True)
class Found:
    """`members` are the archive's, by the artifacts' paths."""

    manifest: Manifest
    members: Mapping[str, Member]


@dataclass(frozen=True, slots=True)
class Memory:
    folder: Path
    now_ns: Callable[[], int] = time.time_ns

    def get(self, archive: Path, stamp: Stamp, model: str) -> Found | None:
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, BadManifest):
            row = self._load()[f"{model} {archive}"]
            if row["stamp"] == list(astuple(stamp)):
                members = {str(path): Member(*one) for path, one in row["members"].items()}
                return Found(manifests.of_document(row["manifest"]), members)
        return None

    def put(self, archive: Path, stamp: Stamp, found: Found) -> None:
        if not hashes.is_settled(stamp, self.now_ns()):
            return
        row = {
            "stamp": list(astuple(stamp)),
            "manifest": json.loads(found.manifest.to_json()),
            "members": {path: astuple(member) for path, member in found.members.items()},
        }
        rows = {**self._load(), f"{found.manifest.model} {archive}": row}
        kept = dict(list(rows.items())[-_MOST_ARCHIVES:])
        beside = self._path.with_name(f"{_NAME}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({"schema": SCHEMA, "archives": kept}), encoding="utf-8")
            os.replace(beside, self._path)

    @property
    def _path(self) -> Path:
        return self.folder / _NAME

    def _load(self) -> dict[str, Any]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            archives = document["archives"] if document["schema"] == SCHEMA else {}
        except (OSError, ValueError, TypeError, KeyError):
            return {}
        return archives if isinstance(archives, dict) else {}
