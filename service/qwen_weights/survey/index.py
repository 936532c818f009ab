"""`index`: what a folder or an archive on this host would be as a model, with every byte hashed.
Writes nothing but its cache. Does not know who asks."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from qwen_weights import manifest as manifests
from qwen_weights.errors import HostRefused, NotAModel
from qwen_weights.manifest import Manifest
from qwen_weights.sources import Interruption
from qwen_weights.survey import Survey, Tell, archive, manifest_of
from qwen_weights.survey.folder import CHANGING, FolderSurvey
from qwen_weights.survey.known import Known, Stamp

_STEPS = 200
_ENDING = re.compile(r"\.(tar|tar\.\w+|tgz|zip)$")
_NOT_IN_A_MODEL = re.compile(r"[^\w.-]+", re.ASCII)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    index = commands.add_parser("index", help="list a folder or an archive on this host")
    index.add_argument("path", type=Path, metavar="PATH")
    index.add_argument("--model", metavar="NAME", help="its own name or its folder's without")
    index.add_argument("--cache", type=Path, metavar="FILE", help="hashes that are known already")
    index.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Lines of progress, then the answer, each as one JSON object."""
    known = Known(arguments.cache)
    answer = index(arguments.path.absolute(), arguments.model, known, _Steps())
    known.save()
    print(json.dumps(answer))


class _Steps:
    """A line for each half of a hundredth: whoever reads them wants to see that it goes on."""

    def __init__(self) -> None:
        self._last = -1

    def __call__(self, done: int, total: int) -> None:
        step = done * _STEPS // max(total, 1)
        if step > self._last:
            self._last = step
            print(json.dumps({"done": done, "total": total}), flush=True)


def index(path: Path, model: str | None, known: Known, tell: Tell) -> dict[str, Any]:
    try:
        if path.is_dir():
            survey: Survey = FolderSurvey(path, known)
            return _answer(survey, manifest_of(survey, model, _name_of(path, survey), tell))
        if not path.is_file():
            raise NotAModel(f"{path} {'is no file' if path.exists() else 'does not exist'}")
        return _of_archive(path, model, known, tell)
    except Interruption as error:
        raise HostRefused(f"{path}: {error}") from error
    except OSError as error:
        raise HostRefused(
            f"{error.filename or path}: cannot be read: {error.strerror or error}"
        ) from error


def _of_archive(path: Path, model: str | None, known: Known, tell: Tell) -> dict[str, Any]:
    """What was found once holds for as long as the archive is the same file."""
    stamp = Stamp.of(path.stat())
    answer = known.get(path, stamp)
    # Of a file of a folder, the same cache knows the SHA-256.
    if not isinstance(answer, dict):
        survey = archive.look(path, tell)
        answer = _answer(survey, manifest_of(survey, None, _name_of(path, survey), tell))
        if Stamp.of(path.stat()) != stamp:
            raise HostRefused(f"{path} changed while it was read", hint=CHANGING)
        known.put(path, stamp, answer)
    document = {**answer["manifest"], "model": model or answer["manifest"]["model"]}
    return {**answer, "manifest": json.loads(manifests.of_document(document).to_json())}


def _name_of(path: Path, survey: Survey) -> str:
    text = survey.prefix.rstrip("/").rpartition("/")[2] or _ENDING.sub("", path.name)
    return _NOT_IN_A_MODEL.sub("-", text).strip(".-_") or "model"


def _answer(survey: Survey, manifest: Manifest) -> dict[str, Any]:
    document = json.loads(manifest.to_json())
    return {"manifest": document, "kind": survey.kind, "prefix": survey.prefix}
