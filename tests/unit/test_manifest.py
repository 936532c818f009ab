from __future__ import annotations

import json
from typing import Any

import pytest
import qwen_weights.manifest as of_the_host
from qwen_weights.errors import BadManifest

from qwen_deploy import manifest as manifests
from qwen_deploy.manifest import Artifact, ManifestError

SHA = "a" * 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = Artifact("config.json", 12, SHA)
SHARD = Artifact("model.safetensors", 3_000_000_000, "b" * 64)


def document(**changes: Any) -> str:
    row = {"path": "config.json", "size": 12, "sha256": SHA}
    whole = {"schema": 1, "model": "Qwen/Qwen2.5", "revision": COMMIT, "artifacts": [row]}
    return json.dumps(whole | changes)


def rows(*paths: str) -> list[dict[str, Any]]:
    return [{"path": path, "size": 1, "sha256": SHA} for path in paths]


def test_what_was_written_is_read_back() -> None:
    made = manifests.make("Qwen/Qwen2.5", [SHARD, CONFIG], COMMIT)
    assert manifests.parse(made.to_json()) == made
    assert made.artifacts == (CONFIG, SHARD)
    assert made.total_bytes == 3_000_000_012
    assert made.directory == f"Qwen--Qwen2.5/{COMMIT}"


def test_host_and_controller_write_the_same_json() -> None:
    made = manifests.make("Qwen/Qwen2.5", [SHARD, CONFIG], COMMIT)
    assert of_the_host.parse(made.to_json()).to_json() == made.to_json()


def test_the_record_of_verification_is_read_too() -> None:
    manifests.parse(document(verified_at="2026-01-01T00:00:00Z"))


def test_revision_depends_on_the_content_and_not_on_its_order() -> None:
    revision = manifests.revision_of([CONFIG, SHARD])
    assert revision == manifests.revision_of([SHARD, CONFIG])
    assert revision.startswith("w-") and len(revision) == 18
    for other in (
        [CONFIG],
        [CONFIG, Artifact("other.safetensors", SHARD.size, SHARD.sha256)],
        [CONFIG, Artifact(SHARD.path, SHARD.size, SHA)],
    ):
        assert manifests.revision_of(other) != revision


BAD = [
    ("", "not JSON"),
    ("[]", "manifest.json: should be an object"),
    (document(schema=2), "schema: should be 1"),
    (document(schema=True), "schema: should be 1"),
    (document(note=""), "note is unknown"),
    (document(artifacts=[]), "artifacts: should be a list"),
    (document(artifacts=[{"path": "x", "size": 1}]), "artifacts/0: sha256 is missing"),
    (document(model="../x"), "model: '../x' is not allowed"),
    (document(model="a/b/c"), "model: 'a/b/c' is not allowed"),
    (document(revision="main"), "revision: 'main' is not allowed"),
    (document(revision=COMMIT + "\n"), "is not allowed"),
    (document(artifacts=[{"path": "x", "size": -1, "sha256": SHA}]), "count of bytes"),
    (document(artifacts=[{"path": "x", "size": True, "sha256": SHA}]), "count of bytes"),
    (document(artifacts=[{"path": "x", "size": 1.0, "sha256": SHA}]), "count of bytes"),
    (document(artifacts=[{"path": "x", "size": 1, "sha256": "A" * 64}]), "sha256"),
    (document(artifacts=rows("../etc/passwd")), "leaves the model's folder"),
    (document(artifacts=rows("/etc/passwd")), "leaves the model's folder"),
    (document(artifacts=rows("a/../../b")), "leaves the model's folder"),
    (document(artifacts=rows("a//b")), "leaves the model's folder"),
    (document(artifacts=rows(".")), "leaves the model's folder"),
    (document(artifacts=rows("x" * 256)), "is not a file name"),
    (document(artifacts=rows("a\x00b")), "is not a file name"),
    (document(artifacts=rows("a\\b")), "is not a file name"),
    (document(artifacts=rows("a\ud800b")), "is not a file name"),
    (document(artifacts=rows("manifest.json")), "cannot list itself"),
    (document(artifacts=rows("b", "a")), "sorted by path"),
    (document(artifacts=rows("a", "a")), "each path once"),
    (document(artifacts=rows("a", "a/b")), "both a file and a folder"),
]


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_both_halves_refuse_the_same_documents(text: str, reason: str) -> None:
    with pytest.raises(ManifestError) as refused:
        manifests.parse(text)
    assert reason in str(refused.value)
    with pytest.raises(BadManifest):
        of_the_host.parse(text)
