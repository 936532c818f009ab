from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from qwen_weights import manifest as manifests
from qwen_weights.errors import BadManifest
from qwen_weights.manifest import Artifact, Origin

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


ORIGIN = {"source": "modelscope", "requested": "master", "commit": None}


def test_origin_proof_and_time_are_read_and_kept() -> None:
    text = document(origin=ORIGIN, proof="hub")
    made = manifests.parse(text)
    assert made.origin == Origin("modelscope", "master")
    assert made.proof == "hub"
    assert json.loads(made.to_json()) == json.loads(text)
    told = manifests.parse(document(verified_at="2026-01-01T00:00:00Z"))
    assert told.verified_at == "2026-01-01T00:00:00Z"
    assert json.loads(told.to_json())["verified_at"] == told.verified_at


def test_how_weights_are_quantized_is_read_and_kept() -> None:
    made = manifests.parse(document(quantization="gptq"))
    assert made.quantization == "gptq"
    assert manifests.parse(made.to_json()).quantization == "gptq"
    assert made == manifests.parse(document())


def test_the_same_artifacts_are_the_same_wherever_they_come_from() -> None:
    plain, told = document(), document(origin=ORIGIN, proof="none")
    assert manifests.parse(plain) == manifests.parse(told)
    named = {
        manifests.manifest_id([manifests.parse(plain)]),
        manifests.manifest_id([manifests.parse(told)]),
    }
    assert len(named) == 1


def test_the_name_of_an_order_depends_on_all_that_it_brings() -> None:
    model, other = manifests.parse(document()), manifests.parse(document(model="x"))
    orders = ((model,), (other,), (model, other), (other, model), ())
    assert len({manifests.manifest_id(order) for order in orders}) == len(orders)
    [row] = json.loads(document())["artifacts"]
    canonical = [{"artifacts": [row], "model": "Qwen/Qwen2.5", "revision": COMMIT}]
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    assert manifests.manifest_id([model]) == hashlib.sha256(text.encode()).hexdigest()


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
    (document(artifacts=rows("manifest.json")), "lies beside the artifacts"),
    (document(artifacts=rows("manifest.pieces.json")), "lies beside the artifacts"),
    (document(quantization="GPTQ 4"), "quantization: 'GPTQ 4' is not allowed"),
    (document(quantization=None), "quantization: None is not allowed"),
    (document(verified_at="yesterday"), "verified_at: 'yesterday' is not allowed"),
    (document(verified_at=None), "verified_at: None is not allowed"),
    (document(proof="word of honor"), "proof: should be one of hub, sums, none"),
    (document(proof=None), "proof: should be one of"),
    (document(proof=["hub"]), "proof: should be one of"),
    (document(origin="modelscope"), "origin: should be an object"),
    (document(origin={"source": "x", "requested": None}), "origin: commit is missing"),
    (document(origin=ORIGIN | {"token": "x"}), "origin: token is unknown"),
    (document(origin=ORIGIN | {"source": ""}), "origin/source: '' is not allowed"),
    (document(origin=ORIGIN | {"source": None}), "origin/source: None is not allowed"),
    (document(origin=ORIGIN | {"source": "a\nb"}), "origin/source"),
    (document(origin=ORIGIN | {"requested": 1}), "origin/requested: 1 is not allowed"),
    (document(origin=ORIGIN | {"commit": "main"}), "origin/commit: 'main' is not allowed"),
    (document(artifacts=rows("b", "a")), "sorted by path"),
    (document(artifacts=rows("a", "a")), "each path once"),
    (document(artifacts=rows("a", "a/b")), "both a file and a folder"),
]


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_what_is_no_manifest_is_refused(text: str, reason: str) -> None:
    with pytest.raises(BadManifest) as refused:
        manifests.parse(text)
    assert reason in str(refused.value)
