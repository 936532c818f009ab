"""A small bundle of this very program, without pip and without a model that could be loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from qwen_weights import manifest
from qwen_weights.manifest import Artifact, Manifest

from qwen_deploy import __version__, airgap, bundle
from qwen_deploy.airgap import Index, Member
from qwen_deploy.airgap import index as indexes
from qwen_deploy.content import Content, MemoryContent
from qwen_deploy.packing import archive

MODEL = {"config.json": b"{}", "deep/生 词.safetensors": bytes(range(256)) * 9}
WHEELS = {"torch-2.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl": b"a wheel"}
UV = b"#!/bin/sh\n"
Edit = Callable[[Index], Index]


def manifest_of(model: str, files: dict[str, bytes]) -> Manifest:
    rows = [Artifact(p, len(data), hashlib.sha256(data).hexdigest()) for p, data in files.items()]
    return manifest.make(model, rows)


def make_bundle(path: Path, edit: Edit = lambda index: index) -> Path:
    """A bundle of this very program, but for what `edit` changes in its index."""
    program = {"uv": UV, **airgap.program_files("cpu")}
    files = {
        **program,
        **{f"wheels/{name}": data for name, data in WHEELS.items()},
        **{f"model/{name}": data for name, data in MODEL.items()},
    }
    members = [Member(p, len(data), hashlib.sha256(data).hexdigest()) for p, data in files.items()]
    lock = bundle.lock_path("transformers", "cpu").read_bytes()
    index = Index(
        version=__version__,
        python="3.11",
        accelerator="cpu",
        lock=hashlib.sha256(lock).hexdigest(),
        model=manifest_of("Qwen/Tiny", MODEL),
        wheels=manifest_of(indexes.WHEELS_MODEL, WHEELS),
        members=tuple(members),
    )
    contents: dict[str, Content] = {name: MemoryContent(data) for name, data in files.items()}
    with path.open("wb") as file:
        archive.write(file, edit(index), contents, lambda done: None)
    return path
