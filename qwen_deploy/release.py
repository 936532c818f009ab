"""A release: everything that decides what a host serves, packed so that its id is its content.

Pure: values in, bytes out. Knows no hosts, no Ansible and no clock.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from qwen_weights.manifest import Manifest

from qwen_deploy import bundle
from qwen_deploy.config import Deployment

ROOT = "/opt/qwen-deploy"
STATE = "/var/lib/qwen-deploy"
ETC = "/etc/qwen-deploy"
PORT_DIR = "/etc/systemd/system/qwen.socket.d"
ENGINE = "transformers"


@dataclass(frozen=True, slots=True)
class Release:
    """`files` are the release directory's, by relative path; `lock` is the requirements file."""

    id: str
    accelerator: str
    python: str
    manifest: Manifest
    lock: bytes
    files: Mapping[str, bytes]

    @property
    def content(self) -> dict[str, Any]:
        """What the id is a hash of, as it lies in the release's release.json."""
        content: dict[str, Any] = json.loads(self.files["release.json"])
        return content

    @property
    def directory(self) -> str:
        return f"{ROOT}/releases/{self.id}"

    @property
    def venv_id(self) -> str:
        return sha256(self.lock + self.python.encode())[:16]

    @property
    def venv_dir(self) -> str:
        return f"{ROOT}/venvs/{self.venv_id}"

    @property
    def model_dir(self) -> str:
        return model_dir(self.manifest)

    @property
    def managed(self) -> dict[str, str]:
        """What `facts` must report for each path: a SHA-256, or `-> target` of a link."""
        files = {f"{self.directory}/{path}": data for path, data in self.files.items()}
        for name, path in INSTALLED.items():
            files[path] = self.files[name]
        digests = {path: sha256(data) for path, data in files.items()}
        links = {f"{self.directory}/{name}": target for name, target in self.links.items()}
        links[f"{ROOT}/current"] = self.directory
        return {
            **digests,
            **{path: f"-> {target}" for path, target in links.items()},
            f"{self.venv_dir}/.complete": sha256(sha256(self.lock).encode()),
        }

    @property
    def links(self) -> dict[str, str]:
        """What the release shares with others."""
        return {"venv": self.venv_dir, "model": self.model_dir}

    def pack(self) -> bytes:
        """A tar.gz of the release directory, whose bytes depend on the content alone."""
        buffer = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as compressed,
            tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            # Named one by one, so that no umask of the host decides who may read them.
            for directory in sorted({str(parent) for parent in self._parents()}):
                archive.addfile(_member(directory, tarfile.DIRTYPE, 0o755))
            for path, data in sorted(self.files.items()):
                member = _member(f"{self.id}/{path}", tarfile.REGTYPE, 0o644)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            for name, target in sorted(self.links.items()):
                member = _member(f"{self.id}/{name}", tarfile.SYMTYPE, 0o777)
                member.linkname = target
                archive.addfile(member)
        return buffer.getvalue()

    def _parents(self) -> Iterator[PurePosixPath]:
        for path in self.files:
            yield from (PurePosixPath(self.id) / path).parents[:-1]


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = mode
    return member


def model_dir(manifest: Manifest) -> str:
    return f"{STATE}/models/{manifest.directory}"


def staging_dir(manifest: Manifest) -> str:
    """Where the artifacts of a revision gather until it is whole."""
    return f"{model_dir(manifest)}.tmp"


PIP_CONF = f"{STATE}/.config/pip/pip.conf"
# Files of a release that take effect from another place on the host.
INSTALLED = {
    f"units/{name}": f"/etc/systemd/system/{name}"
    for name in ("qwen.service", "qwen.socket", "qwen.socket.d/listen.conf")
}


def make(deployment: Deployment, manifest: Manifest, accelerator: str) -> Release:
    lock = bundle.lock_path(ENGINE, accelerator).read_bytes()
    units = bundle.systemd_dir()
    files = {
        **bundle.service_files(),
        **{
            f"units/{name}": (units / name).read_bytes() for name in ("qwen.service", "qwen.socket")
        },
        "units/qwen.socket.d/listen.conf": _listen(deployment),
    }
    settings = environment(deployment, manifest)
    content = {
        "schema": 1,
        "model": manifest.model,
        "revision": manifest.revision,
        "engine": ENGINE,
        "accelerator": accelerator,
        "python": deployment.runtime.python,
        "lock": sha256(lock),
        "files": {path: sha256(data) for path, data in sorted(files.items())},
        "settings": settings,
        "listen": f"{deployment.service.address}:{deployment.service.port}",
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    identity = f"r-{sha256(text.encode())[:8]}"
    files["environment"] = _environment_file({"QWEN_RELEASE": identity, **settings})
    files["release.json"] = (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
    return Release(identity, accelerator, deployment.runtime.python, manifest, lock, files)


def environment(deployment: Deployment, manifest: Manifest) -> dict[str, str]:
    """The settings of qwen_service (see service/qwen_service/settings.py)."""
    service = deployment.service
    # An empty list would hide every GPU.
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(service.gpus)} if service.gpus else {}
    return {
        **gpus,
        "QWEN_MODEL_DIR": f"{ROOT}/current/model",
        "QWEN_MODEL_NAME": manifest.model,
        "QWEN_MODEL_REVISION": manifest.revision,
        "QWEN_MODEL_ALIASES": ",".join(deployment.model.aliases),
        "QWEN_ENGINE": ENGINE,
        "QWEN_DEVICE": service.device,
        "QWEN_DTYPE": service.dtype,
        "QWEN_AUTH": "keys" if service.auth else "none",
        "QWEN_KEYS_FILE": "/etc/qwen-deploy/keys",
        "QWEN_MAX_BATCH": str(service.max_batch),
        "QWEN_MAX_QUEUE": str(service.max_queue),
        "QWEN_MAX_CONTEXT": str(service.max_context or ""),
        "QWEN_KV_MEMORY": service.kv_memory or "",
        "QWEN_THREADS": str(service.threads or ""),
        "QWEN_DRAIN_SECONDS": str(service.drain_seconds),
        "QWEN_WEB_UI": _switch(service.web_ui),
        "QWEN_METRICS": service.metrics,
        "QWEN_LOG_PROMPTS": _switch(service.log_prompts),
        "QWEN_BASIC_AUTH": _switch(service.basic_auth),
        "QWEN_CORS_ORIGINS": ",".join(service.cors_origins),
    }


def _switch(is_on: bool) -> str:
    return "on" if is_on else "off"


def pip_conf(deployment: Deployment) -> bytes:
    """The service user's; no release carries it, because what is served does not depend on it."""
    pip = deployment.pip
    lines = ["[global]", f"index-url = {pip.resolved_index_url}"]
    lines += _multiline("extra-index-url", pip.extra_index_urls)
    lines += _multiline("find-links", pip.find_links)
    lines += [f"cert = {pip.ca_file}"] if pip.ca_file else []
    return ("\n".join(lines) + "\n").encode()


def _multiline(key: str, values: tuple[str, ...]) -> list[str]:
    return [f"{key} =", *(f"    {value}" for value in values)] if values else []


def host_state(deployment: Deployment) -> dict[str, str]:
    """What `facts` must report of the host itself, whichever release it serves."""
    directories = (ETC, PORT_DIR, STATE, f"{ROOT}/releases", f"{ROOT}/venvs")
    return {
        **{path: "directory" for path in directories},
        PIP_CONF: sha256(pip_conf(deployment)),
    }


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _environment_file(values: Mapping[str, str]) -> bytes:
    # Quoted as systemd.exec(5) reads it under EnvironmentFile=.
    lines = [f'{key}="{_escaped(value)}"\n' for key, value in values.items()]
    return "".join(lines).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _listen(deployment: Deployment) -> bytes:
    address = deployment.service.address
    bracketed = f"[{address}]" if ":" in address else address
    # The empty assignment clears the unit's own address.
    return f"[Socket]\nListenStream=\nListenStream={bracketed}:{deployment.service.port}\n".encode()
