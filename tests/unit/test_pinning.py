from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qwen_weights.manifest import Origin, revision_of

from qwen_deploy import sources
from qwen_deploy.checkpoint import CheckpointRefused
from qwen_deploy.errors import UsageError
from qwen_deploy.sources import (
    HubError,
    HubMissing,
    HubRefused,
    HubUnreachable,
    ListRefused,
    Settings,
    Source,
    Upstream,
    auto,
    listing,
)
from qwen_deploy.sources.listing import Listed, Listing, git_sha1
from qwen_deploy.sources.settings import endpoint
from tests.model_folder import make_model

SHA = "a" * 64


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings("auto", "Qwen/Tiny", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("auto", Source("auto")),
        ("modelscope", Source("modelscope")),
        ("git-lfs", Source("git-lfs")),
        ("huggingface+https://hf.lan/", Source("huggingface", "https://hf.lan")),
        ("git-lfs+http://git.lan/a/b.git", Source("git-lfs", "http://git.lan/a/b.git")),
        ("https://files.lan/models/x", Source("mirror", "https://files.lan/models/x")),
        ("host:/data/x.tar", Source("host", "/data/x.tar")),
        ("./auto", Source("path", "./auto")),
        ("/data/x", Source("path", "/data/x")),
        ("Qwen2.5-7B", Source("path", "Qwen2.5-7B")),
    ],
)
def test_a_source_is_told_by_its_text(text: str, source: Source) -> None:
    assert sources.parse(text) == source


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("git-lfs+ssh://git@git.lan/a", "a URL should begin with https:// or http://"),
        ("git-lfs+file:///srv/a", "a URL should begin with https:// or http://"),
        ("ftp://files.lan/x", "a URL should begin with https:// or http://"),
        ("https:///x", "a URL should begin with https:// or http://"),
        ("host:data", "should be host:/ and a path"),
        ("https://me:secret@files.lan/x", "a URL on files.lan holds a password"),
    ],
)
def test_what_names_no_source_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        sources.parse(text)
    assert reason in refused.value.message
    assert "secret" not in refused.value.message


def test_a_url_of_another_kind_is_told_what_is_taken_instead() -> None:
    with pytest.raises(UsageError) as refused:
        sources.parse("ftp://files.lan/x")
    assert refused.value.message == (
        "model/source: ftp://files.lan/x: a URL should begin with https:// or http://"
    )
    assert refused.value.hint == (
        "Fetch it here, and name the folder or archive; or host:/PATH, where it lies on the hosts"
    )


def test_an_endpoint_is_the_nearest_that_was_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    official = endpoint(settings, "huggingface")
    assert (official.url, official.is_official) == ("https://huggingface.co", True)
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.com/")
    assert endpoint(settings, "huggingface").url == "https://hf-mirror.com"
    configured = replace(settings, huggingface_endpoint="https://hf.lan")
    assert endpoint(configured, "huggingface").url == "https://hf.lan"
    asked = endpoint(configured, "huggingface", "https://other.lan")
    assert (asked.url, asked.is_official) == ("https://other.lan", False)


def test_a_token_is_what_its_file_holds(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("hf_secret\n")
    found = endpoint(replace(settings, huggingface_token_file=file), "huggingface")
    assert found.token == "hf_secret"
    assert "secret" not in repr(found)
    assert endpoint(replace(settings, huggingface_token_file=file), "modelscope").token is None
    for content in ("", "two words", "a\nb"):
        file.write_text(content)
        with pytest.raises(UsageError, match=r"weights/huggingface_token_file: .*one token"):
            endpoint(replace(settings, huggingface_token_file=file), "huggingface")
    file.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        endpoint(replace(settings, huggingface_token_file=file), "huggingface")


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        ("https://hub.lan/x", {}, None),
        ("https://hub.lan/x", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        (
            "https://hub.lan/x",
            {"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:1"},
            "http://b:1",
        ),
        ("https://hub.lan/x", {"http_proxy": "http://p:1"}, None),
        ("http://hub.lan/x", {"all_proxy": "http://p:1"}, "http://p:1"),
        ("http://hub.lan/x", {"all_proxy": "socks5://p:1"}, None),
        ("http://hub.lan/x", {"http_proxy": "http://p:1", "no_proxy": "a.b, .lan"}, None),
        ("http://hub.lan:81/x", {"http_proxy": "http://p:1", "no_proxy": "hub.lan"}, None),
        ("http://hub.lan/x", {"http_proxy": "http://p:1", "no_proxy": "ub.lan"}, "http://p:1"),
        ("http://hub.lan/x", {"http_proxy": "http://p:1", "no_proxy": "*"}, None),
    ],
)
def test_the_environment_names_proxies(
    url: str, environ: dict[str, str], proxy: str | None
) -> None:
    assert sources.direct.proxy_for(url, environ) == proxy
    own = sources.through("http://own:1")
    assert own.proxy_for(url, environ) == "http://own:1"


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(sources.through("http://me:secret@p:1"))
    upstream = Upstream({"name": "hub", "url": "https://hub.lan", "token": "secret"})
    assert "secret" not in repr(upstream)
    assert "hub.lan" in repr(upstream)


def test_only_what_a_model_needs_is_taken_of_a_list() -> None:
    names = ["README.md", ".gitattributes", "a.png", "configuration.json", "original/x.pth"]
    names += ["model.bin", "model.gguf", "manifest.json", "SHA256SUMS", "LICENSE", "a/b.json"]
    rows = [Listed(name, 1, SHA) for name in [*names, "model.safetensors"]]
    taken = [row.path for row in listing.select("hub/x", rows)]
    assert taken == ["LICENSE", "a/b.json", "model.safetensors"]


ODD: list[tuple[str, Listed, str]] = [
    ("leads out", Listed("../../evil", 1, SHA), "'../../evil' leaves the model's folder"),
    ("unwanted leads out", Listed("../.evil", 1, SHA), "leaves the model's folder"),
    ("absolute", Listed("/etc/evil", 1, SHA), "leaves the model's folder"),
    ("backslash", Listed("a\\b", 1, SHA), "is not a file name"),
    ("newline", Listed("a\nb", 1, SHA), "is not a file name"),
    ("no name", Listed("", 1, SHA), "leaves the model's folder or is not a file name"),
    ("no text", Listed(None, 1, SHA), "None is not a file name"),  # type: ignore[arg-type]
    ("negative", Listed("a", -1, SHA), "a has the size -1"),
    ("no number", Listed("a", "9", SHA), "a has the size '9'"),  # type: ignore[arg-type]
    ("no hash", Listed("a", 1), "a has no hash"),
    ("empty hash", Listed("a", 1, ""), "a has the SHA-256 ''"),
    ("short hash", Listed("a", 1, "abc"), "a has the SHA-256 'abc'"),
    ("odd git", Listed("a", 1, None, "abc"), "a has the git hash 'abc'"),
    ("twice", Listed("config.json", 1, SHA), "it names config.json twice"),
]


@pytest.mark.parametrize(("row", "reason"), [row[1:] for row in ODD], ids=[row[0] for row in ODD])
def test_a_list_that_makes_no_sense_is_refused(row: Listed, reason: str) -> None:
    with pytest.raises(ListRefused) as refused:
        listing.select("hub.lan/x", [Listed("config.json", 1, SHA), row])
    assert refused.value.message.startswith("the list of hub.lan/x makes no sense: ")
    assert reason in refused.value.message


def test_a_list_of_nothing_is_refused() -> None:
    with pytest.raises(HubMissing, match=r"hub\.lan/x lists no files"):
        listing.select("hub.lan/x", [])


def test_an_empty_file_needs_no_hash() -> None:
    (row,) = listing.select("hub.lan/x", [Listed("a", 0, "")])
    assert row.sha256 == hashlib.sha256(b"").hexdigest()


class FakeHub:
    """A listing of a folder, which counts what is read."""

    def __init__(self, folder: Path, name: str = "hub", *, with_sha256: bool = False) -> None:
        self.folder = folder
        self.name = name
        self.with_sha256 = with_sha256
        self.reads: list[str] = []
        self.wrong = 0
        self.error: HubError | None = None

    def ask(self, settings: Settings, wire: object) -> Listing:
        if self.error:
            raise self.error
        rows = [self._row(path) for path in self.folder.iterdir()]
        place = f"{self.name}.lan/{settings.name}"
        files = listing.select(place, rows)
        upstream = Upstream({"name": self.name, "url": "https://x", "paths": None})
        return Listing(place, Origin(self.name, None, None), files, (upstream,), self._read)

    def _row(self, path: Path) -> Listed:
        content = path.read_bytes()
        if self.with_sha256 or path.suffix == ".safetensors":
            return Listed(path.name, len(content), hashlib.sha256(content).hexdigest())
        return Listed(path.name, len(content), git=git_sha1(content))

    def _read(self, row: Listed) -> bytes:
        self.reads.append(row.path)
        if self.wrong:
            self.wrong -= 1
            return b"other bytes"
        return (self.folder / row.path).read_bytes()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def pin(settings: Settings, *hubs: FakeHub) -> sources.Pinned:
    asks: Sequence[Callable[..., Listing]] = [hub.ask for hub in hubs]
    answers = auto.ask_all(asks, settings, None)  # type: ignore[arg-type]
    return auto.of_any(answers, settings)


def test_small_files_without_sha256_are_read_once(settings: Settings, model: Path) -> None:
    hub = FakeHub(model)
    first = pin(settings, hub)
    small = ["config.json", "model.safetensors.index.json", "tokenizer.json"]
    assert sorted(hub.reads) == [*small, "tokenizer_config.json"]
    assert first.manifest.proof == "hub"
    assert first.manifest.revision == revision_of(first.manifest.artifacts)
    for artifact in first.manifest.artifacts:
        content = (model / artifact.path).read_bytes()
        assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    hub.reads.clear()
    assert pin(settings, hub).manifest == first.manifest
    assert hub.reads == []
    (settings.cache_dir / "pins.json").write_text("{}")
    assert pin(settings, hub).manifest == first.manifest


def test_how_a_model_is_quantized_is_remembered_with_its_hashes(
    settings: Settings, model: Path
) -> None:
    config = {"model_type": "qwen2", "quantization_config": {"quant_method": "awq"}}
    (model / "config.json").write_text(json.dumps(config))
    hub = FakeHub(model)
    assert pin(settings, hub).manifest.quantization == "awq"
    hub.reads.clear()
    assert pin(settings, hub).manifest.quantization == "awq"
    assert hub.reads == []


def test_two_kinds_of_lists_give_one_revision(settings: Settings, model: Path) -> None:
    one = pin(settings, FakeHub(model))
    (model / "configuration.json").write_text("{}")
    (model / "README.md").write_text("other")
    assert pin(settings, FakeHub(model, with_sha256=True)).manifest == one.manifest


def test_what_is_read_is_compared(settings: Settings, model: Path) -> None:
    hub = FakeHub(model)
    hub.wrong = 1
    pin(settings, hub)
    (model / "config.json").write_text('{"model_type": "qwen3"}')
    hub.wrong = 100
    with pytest.raises(ListRefused, match=r"hub\.lan/Qwen/Tiny/.*: other bytes come than are"):
        pin(settings, hub)


def test_a_hub_that_has_no_model_is_refused(settings: Settings, model: Path) -> None:
    (model / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointRefused, match=r"^hub\.lan/Qwen/Tiny lacks model-00001-of"):
        pin(settings, FakeHub(model))


def test_hubs_that_agree_may_both_be_read(settings: Settings, model: Path) -> None:
    found = pin(settings, FakeHub(model, "one", with_sha256=True), FakeHub(model, "two"))
    assert [(one.name, one.entry["paths"]) for one in found.upstreams] == [
        ("one", None),
        ("two", None),
    ]
    assert found.notes == ()
    assert found.manifest.origin == Origin("one", None, None)


def test_hubs_that_differ_bring_what_is_the_same(
    settings: Settings, model: Path, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "qwen2", "more": 1}')
    (other / "tokenizer.json").unlink()
    (other / "qwen.tiktoken").write_text("x")
    found = pin(settings, FakeHub(model, "one"), FakeHub(other, "two"))
    (first, second) = found.upstreams
    assert first.entry["paths"] is None
    paths = {artifact.path for artifact in found.manifest.artifacts}
    assert second.entry["paths"] == sorted(paths - {"config.json", "tokenizer.json"})
    assert found.notes == (
        "two.lan/Qwen/Tiny has no or another config.json, tokenizer.json; that of "
        "one.lan/Qwen/Tiny is taken",
    )


def test_one_hub_does_where_the_other_fails(settings: Settings, model: Path) -> None:
    one, two = FakeHub(model, "one"), FakeHub(model, "two")
    one.error = HubUnreachable("one.lan cannot be reached from here: no answer")
    found = pin(settings, one, two)
    assert [upstream.name for upstream in found.upstreams] == ["two"]
    assert found.notes == ("one source less: one.lan cannot be reached from here: no answer",)


def test_a_hub_that_fails_later_is_left_too(settings: Settings, model: Path) -> None:
    one = FakeHub(model, "one")
    one.wrong = 100
    found = pin(settings, one, FakeHub(model, "two"))
    assert found.manifest.origin == Origin("two", None, None)
    assert "other bytes come" in found.notes[0]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (HubMissing, HubUnreachable, HubUnreachable),
        (HubRefused, HubMissing, HubRefused),
        (HubMissing, HubMissing, HubMissing),
    ],
)
def test_when_all_fail_each_is_named(
    settings: Settings,
    model: Path,
    first: type[HubError],
    second: type[HubError],
    expected: type[HubError],
) -> None:
    one, two = FakeHub(model), FakeHub(model)
    one.error, two.error = first("one says no", hint="do a"), second("two says no", hint="do b")
    with pytest.raises(HubError) as failed:
        pin(settings, one, two)
    assert type(failed.value) is expected
    assert failed.value.message == "one says no; two says no"
    assert failed.value.hint == "do a; do b"


def test_a_folder_and_an_archive_are_served_from_here(settings: Settings, model: Path) -> None:
    found = sources.pin(replace(settings, source=str(model)))
    assert found.upstreams == ()
    assert found.share is not None
    assert set(found.share.contents()) == {one.path for one in found.manifest.artifacts}
    assert found.notes == (f"unverified: no checksums came with {model}",)
    lines = [f"{one.sha256}  {one.path}\n" for one in found.manifest.artifacts]
    (model / "SHA256SUMS").write_text("".join(lines))
    again = sources.pin(replace(settings, source=str(model)))
    assert (again.notes, again.manifest.proof) == ((), "sums")


def test_what_a_host_indexed_is_read_there(settings: Settings, model: Path) -> None:
    manifest = json.loads(sources.pin(replace(settings, source=str(model))).manifest.to_json())
    told = {"manifest": manifest, "kind": "archive", "prefix": "Qwen/"}
    found = sources.from_index("/data/x.tar", told)
    (upstream,) = found.upstreams
    assert upstream.entry == {
        "kind": "archive",
        "name": "host:/data/x.tar",
        "path": "/data/x.tar",
        "prefix": "Qwen/",
    }
    assert found.notes == ("unverified: no checksums came with host:/data/x.tar",)
    damages: list[dict[str, Any]] = [{}, {"manifest": {}}, {"manifest": manifest}]
    for damaged in damages:
        with pytest.raises(CheckpointRefused, match="host:/data/x cannot be used"):
            sources.from_index("/data/x", damaged)


def test_a_host_has_to_be_asked_itself(settings: Settings) -> None:
    with pytest.raises(UsageError, match="lies on hosts"):
        sources.pin(replace(settings, source="host:/data/x"))


def test_importing_the_sources_stays_quick() -> None:
    slow = ("huggingface_hub", "modelscope_hub", "httpx", "httpx2", "requests", "zstandard")
    program = (
        "import sys; from qwen_deploy import sources, archive;"
        f"print([name for name in {slow} if name in sys.modules])"
    )
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
