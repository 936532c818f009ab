"""What the operator's machine asks hubs, with their own libraries against a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from qwen_weights.fields import Fields
from qwen_weights.manifest import parse
from qwen_weights.sources import ByteStream, entries, factory
from qwen_weights.sources import Patience as AgentPatience

from qwen_deploy import netproxy, sources
from qwen_deploy.errors import UsageError
from qwen_deploy.loopback import LoopbackServer
from qwen_deploy.sources import (
    HubError,
    HubMissing,
    HubRefused,
    HubUnreachable,
    ListRefused,
    Patience,
    Pinned,
    Settings,
    huggingface,
    modelscope,
)
from qwen_deploy.sources.settings import Endpoint
from tests.hub import Certificate, Hub, Rule
from tests.model_folder import make_model, shard_name

pytestmark = pytest.mark.contract

REPO = "Qwen/Tiny"
FIRST, SECOND = shard_name(1, 2), shard_name(2, 2)
HUBS = ("huggingface", "modelscope")
ALL = (*HUBS, "git-lfs")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = make_model(tmp_path / "model")
    (made / "README.md").write_text("read me")
    (made / "assets").mkdir()
    (made / "assets/生 词.txt").write_text("a name that has to be quoted")
    return made


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    with Hub() as started:
        started.add(REPO, model)
        yield started


@pytest.fixture(autouse=True)
def _no_saved_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


class Waits:
    """Waits that are only noted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @property
    def patience(self) -> Patience:
        return Patience(pause=self.seconds.append)


class Asker:
    def __init__(self, hub: Hub, tmp_path: Path) -> None:
        self.waits = Waits()
        self.settings = Settings(
            "auto",
            REPO,
            huggingface_endpoint=hub.endpoint,
            modelscope_endpoint=hub.endpoint,
            cache_dir=tmp_path / "cache",
        )

    def __call__(self, source: str, **changes: object) -> Pinned:
        settings = replace(self.settings, source=source, **changes)  # type: ignore[arg-type]
        return sources.pin(settings, patience=self.waits.patience)

    def fails(self, source: str, kind: type[HubError], **changes: object) -> HubError:
        with pytest.raises(HubError) as failed:
            self(source, **changes)
        assert type(failed.value) is kind, failed.value.message
        assert "\n" not in failed.value.message
        return failed.value


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Asker:
    return Asker(hub, tmp_path)


def assert_pinned(pinned: Pinned, model: Path) -> None:
    expected = {
        path.relative_to(model).as_posix(): path.read_bytes()
        for path in model.rglob("*")
        if path.is_file() and path.suffix != ".md"
    }
    assert {one.path: (one.size, one.sha256) for one in pinned.manifest.artifacts} == {
        path: (len(content), hashlib.sha256(content).hexdigest())
        for path, content in expected.items()
    }


def read(pinned: Pinned, path: str) -> bytes:
    """By the agent's own code, from the first entry that has the file."""
    (artifact,) = (one for one in parse(pinned.manifest.to_json()).artifacts if one.path == path)
    document = {"schema": 1, "sources": [dict(one.entry) for one in pinned.upstreams]}
    read = entries.parse(Fields(json.loads(json.dumps(document)), "sources.json"))
    for entry in read.sources:
        if entry.paths is None or path in entry.paths:
            with closing(factory.make(entry, AgentPatience())) as source:
                return drained(source.open(artifact, 0))
    raise AssertionError(f"{path} comes from nowhere")


def drained(stream: ByteStream) -> bytes:
    buffer = memoryview(bytearray(1 << 16))
    with closing(stream):
        return b"".join(iter(lambda: bytes(buffer[: stream.readinto(buffer)]), b""))


@pytest.mark.parametrize("source", HUBS)
def test_a_hub_names_every_byte(ask: Asker, hub: Hub, model: Path, source: str) -> None:
    pinned = ask(source)
    assert_pinned(pinned, model)
    assert pinned.share is None
    assert pinned.manifest.proof == "hub"
    origin = pinned.manifest.origin
    assert origin and (origin.source, origin.requested) == (source, None)
    for artifact in pinned.manifest.artifacts:
        assert read(pinned, artifact.path) == (model / artifact.path).read_bytes()


def test_a_revision_is_pinned_to_its_commit(ask: Asker, hub: Hub, tmp_path: Path) -> None:
    first = ask("huggingface")
    commit = hub.commit(REPO, make_model(tmp_path / "newer", seed=1))
    newer = ask("huggingface", revision="main")
    assert newer.manifest != first.manifest
    assert newer.manifest.origin and first.manifest.origin
    assert (newer.manifest.origin.requested, newer.manifest.origin.commit) == ("main", commit.id)
    again = ask("huggingface", revision=first.manifest.origin.commit)
    assert again.manifest == first.manifest
    assert read(first, FIRST) == read(again, FIRST) != read(newer, FIRST)


def test_every_source_gives_the_same_revision(ask: Asker, hub: Hub, model: Path) -> None:
    names = [*ALL, "auto", f"git-lfs+{hub.git_url(REPO)}", hub.endpoint, str(model)]
    revisions = {name: ask(name).manifest.revision for name in names}
    assert len(set(revisions.values())) == 1, revisions


def test_the_second_time_little_is_asked(ask: Asker, hub: Hub) -> None:
    ask("huggingface")
    hub.requests.clear()
    ask("huggingface")
    assert [asked.path.split("/")[-2] for asked in hub.requests] == ["Qwen", "tree"]


def test_auto_reads_both(ask: Asker, model: Path) -> None:
    pinned = ask("auto", revision="main")
    assert [upstream.name for upstream in pinned.upstreams] == ["modelscope", "huggingface"]
    assert [upstream.entry["paths"] for upstream in pinned.upstreams] == [None, None]
    assert_pinned(pinned, model)


@pytest.mark.parametrize("down", HUBS)
def test_auto_does_with_one(ask: Asker, hub: Hub, model: Path, down: str) -> None:
    hub.rules += [
        Rule("@listing", "status", hub=down),  # type: ignore[arg-type]
        Rule("@revision", "status", hub=down),  # type: ignore[arg-type]
    ]
    pinned = ask("auto")
    assert_pinned(pinned, model)
    assert [upstream.name for upstream in pinned.upstreams] == [one for one in HUBS if one != down]
    assert pinned.notes == (f"one source less: {urlsplit(hub.endpoint).netloc} answers 503",)


def test_auto_names_both_when_both_fail(ask: Asker, hub: Hub) -> None:
    failed = ask.fails("auto", HubMissing, name="Qwen/Absent")
    place = urlsplit(hub.endpoint).netloc
    assert failed.message.count(f"{place} has no model Qwen/Absent") == 2
    hub.close()
    assert failed.exit_code == 2
    failed = ask.fails("auto", HubUnreachable)
    assert failed.exit_code == 4
    assert failed.message.count(f"{place} cannot be reached from here: Connection refused") == 2


@pytest.mark.parametrize("source", HUBS)
def test_a_missing_model_is_named(ask: Asker, hub: Hub, source: str) -> None:
    failed = ask.fails(source, HubMissing, name="Qwen/Absent")
    place = urlsplit(hub.endpoint).netloc
    assert failed.message == f"{place} has no model Qwen/Absent, or shows it to no stranger"
    assert failed.hint and failed.hint.startswith("Compare model/name with http")
    failed = ask.fails(source, HubMissing, name="Absent")
    assert failed.hint and failed.hint.startswith("A model is named OWNER/NAME")


@pytest.mark.parametrize("source", ALL)
def test_a_missing_revision_is_named(ask: Asker, hub: Hub, source: str) -> None:
    failed = ask.fails(source, HubMissing, revision="v9")
    assert f"{REPO}" in failed.message
    assert failed.message.endswith(" has no revision `v9`")
    assert failed.hint and failed.hint.startswith("Leave model/revision out")


@pytest.mark.parametrize("source", HUBS)
def test_a_gated_model_says_where_to_ask(
    ask: Asker, hub: Hub, model: Path, tmp_path: Path, source: str
) -> None:
    hub.add("Qwen/Gated", model, token="granted", is_gated=True)
    hub.accounts.add("other")
    failed = ask.fails(source, HubRefused, name="Qwen/Gated")
    assert "no token was given" in failed.message
    assert failed.hint
    assert f"{hub.endpoint}/" in failed.hint and "Qwen/Gated" in failed.hint
    assert f"weights/{source}_token_file" in failed.hint
    file = tmp_path / "token"
    key = {f"{source}_token_file": file}
    file.write_text("other")
    failed = ask.fails(source, HubRefused, name="Qwen/Gated", **key)
    assert f"the account of the token of {file}" in failed.message
    assert failed.hint and failed.hint.startswith("Ask for access at")
    file.write_text("unknown")
    failed = ask.fails(source, HubRefused, name="Qwen/Gated", **key)
    assert failed.exit_code == 4
    assert str(file) in failed.message
    assert failed.hint and failed.hint.startswith("Make one at")
    file.write_text("granted")
    pinned = ask(source, name="Qwen/Gated", **key)
    assert_pinned(pinned, model)
    assert read(pinned, FIRST) == (model / FIRST).read_bytes()
    assert "granted" not in repr(pinned)


def test_saved_tokens_do_not_go_to_mirrors(
    ask: Asker, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_saved")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms_saved")
    for source in (*ALL, "auto", hub.endpoint):
        ask(source)
    for asked in hub.requests:
        assert "saved" not in str(asked.headers)


def test_a_token_does_not_follow_a_redirect(
    ask: Asker, hub: Hub, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("granted")
    hub.add("Qwen/Own", model, token="granted")
    with Hub() as other:
        for source in HUBS:
            hub.rules.append(Rule("config.json", "redirect", text=f"{other.endpoint}/elsewhere"))
            key = {f"{source}_token_file": tmp_path / "token"}
            ask.fails(source, ListRefused, name="Qwen/Own", **key)
        assert other.requests
        for asked in other.requests:
            assert "granted" not in str(asked.headers)


@pytest.mark.parametrize("source", HUBS)
def test_what_passes_is_waited_for(ask: Asker, hub: Hub, model: Path, source: str) -> None:
    after = {"Retry-After": "7"}
    hub.rules += [
        Rule("@listing", "status", times=1, status=503),
        Rule("@listing", "status", times=1, status=429, headers=after),
        Rule("config.json", "status", times=2, status=500),
    ]
    assert_pinned(ask(source), model)
    assert ask.waits.seconds == [1.0, 7.0, 1.0, 2.0]


@pytest.mark.parametrize("source", HUBS)
@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (503, {}, "answers 503"),
        (429, {"Retry-After": "7"}, "is asked too often (429) and asks to wait 7 s"),
        (429, {"Retry-After": "3600"}, "is asked too often (429) and asks to wait 3600 s"),
    ],
)
def test_what_does_not_pass_is_told(
    ask: Asker, hub: Hub, source: str, status: int, headers: dict[str, str], said: str
) -> None:
    hub.rules.append(Rule("@listing", "status", status=status, headers=headers))
    failed = ask.fails(source, HubUnreachable)
    assert failed.message == f"{urlsplit(hub.endpoint).netloc} {said}"
    assert sum(ask.waits.seconds) < 31


@pytest.mark.parametrize("source", HUBS)
@pytest.mark.parametrize("match", ["@listing", "config.json"])
def test_redirects_in_a_circle_are_told(ask: Asker, hub: Hub, source: str, match: str) -> None:
    hub.rules.append(Rule(match, "loop"))
    failed = ask.fails(source, HubUnreachable)
    assert " leads in a circle" in failed.message


def test_a_saved_token_goes_to_the_official_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_saved")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms_saved")
    for signed_in, token in (
        (huggingface.signed_in, "hf_saved"),
        (modelscope.signed_in, "ms_saved"),
    ):
        assert signed_in(Endpoint("https://official", True)).token == token
        assert signed_in(Endpoint("https://official", True, "own")).token == "own"
        assert signed_in(Endpoint("https://mirror", False)).token is None


@pytest.mark.parametrize("source", HUBS)
def test_a_list_that_leads_out_is_refused(ask: Asker, hub: Hub, source: str) -> None:
    hub.rules.append(Rule("@listing", "name", text="../../evil"))
    failed = ask.fails(source, ListRefused)
    assert "makes no sense: '../../evil' leaves the model's folder" in failed.message


@pytest.mark.parametrize("source", HUBS)
def test_wrong_bytes_of_small_files_are_noticed(
    ask: Asker, hub: Hub, model: Path, source: str
) -> None:
    hub.rules.append(Rule("config.json", "flip", times=1))
    assert_pinned(ask(source), model)
    hub.commit(REPO, make_model(model, seed=2))
    hub.rules.append(Rule("config.json", "flip"))
    failed = ask.fails(source, ListRefused)
    assert failed.message.endswith("/config.json: other bytes come than are listed")


@pytest.mark.parametrize("source", HUBS)
def test_a_list_of_another_kind_is_told(ask: Asker, hub: Hub, source: str) -> None:
    for text in ("<html>hello</html>", "{}", "[1]", '{"Data": 3, "sha": 4}'):
        hub.rules[:] = [Rule("@*", "status", status=200, text=text)]
        with pytest.raises(HubError, match=r"does not answer as|names the commit|lists no files"):
            ask(source)


def test_xet_is_never_used(ask: Asker, hub: Hub, model: Path) -> None:
    hub.rules.append(Rule("*", "xet"))
    assert_pinned(ask("huggingface"), model)
    assert not any("xet" in asked.path for asked in hub.requests)


@pytest.mark.parametrize("source", ["huggingface", "modelscope", "git-lfs", "mirror"])
def test_certificates_are_checked(tmp_path: Path, model: Path, source: str) -> None:
    certificate = Certificate()
    with Hub(certificate=certificate) as hub:
        hub.add(REPO, model)
        ask = Asker(hub, tmp_path)
        named = hub.endpoint if source == "mirror" else source
        failed = ask.fails(named, HubUnreachable)
        assert failed.message.endswith("its certificate is not trusted")
        assert failed.hint and "weights/ca_file" in failed.hint
        (tmp_path / "ca.pem").write_text(certificate.pem)
        pinned = ask(named, ca_file=tmp_path / "ca.pem")
        assert_pinned(pinned, model)
        assert all(one.entry["ca"] == certificate.pem for one in pinned.upstreams)


def test_a_mirror_without_tls_is_to_be_named_with_http(ask: Asker, hub: Hub) -> None:
    failed = ask.fails(hub.endpoint.replace("http:", "https:"), HubUnreachable)
    assert failed.message.endswith(
        "cannot be reached from here: it answered plain HTTP instead of TLS"
    )
    assert failed.hint == "Name it with http:// instead of https://"


def test_a_certificate_from_the_future_is_told(tmp_path: Path, model: Path) -> None:
    certificate = Certificate(begins_in_days=2)
    (tmp_path / "ca.pem").write_text(certificate.pem)
    with Hub(certificate=certificate) as hub:
        ask = Asker(hub, tmp_path)
        failed = ask.fails("huggingface", HubUnreachable, ca_file=tmp_path / "ca.pem")
        assert failed.message.endswith("its certificate is not valid yet: is the clock right?")


@pytest.mark.parametrize("source", [*ALL, "auto", "mirror"])
def test_another_network_is_used_for_everything(
    hub: Hub, ask: Asker, model: Path, source: str
) -> None:
    """The hub's name is known only where the connections begin."""
    dialed: list[str] = []

    def dial(host: str, port: int) -> socket.socket:
        dialed.append(host)
        return socket.create_connection(("127.0.0.1", port))

    port = urlsplit(hub.endpoint).port
    endpoint = f"http://hub.invalid:{port}"
    settings = replace(
        ask.settings,
        source=endpoint if source == "mirror" else source,
        huggingface_endpoint=endpoint,
        modelscope_endpoint=endpoint,
    )
    with pytest.raises(HubUnreachable, match=r"hub\.invalid:\d+ cannot be reached from here"):
        sources.pin(settings)
    with netproxy.serve(dial) as proxy:
        pinned = sources.pin(settings, network=sources.through(proxy))
    assert_pinned(pinned, model)
    assert set(dialed) == {"hub.invalid"}
    assert all(one.entry["proxy"] is None for one in pinned.upstreams)


@pytest.mark.parametrize("source", [*ALL, "mirror"])
def test_another_network_may_be_encrypted(tmp_path: Path, model: Path, source: str) -> None:
    certificate = Certificate()
    (tmp_path / "ca.pem").write_text(f"# Zertifikat für Tests\n{certificate.pem}")
    dialed: list[int] = []

    def dial(host: str, port: int) -> socket.socket:
        dialed.append(port)
        return socket.create_connection((host, port))

    with Hub(certificate=certificate) as hub, netproxy.serve(dial) as proxy:
        hub.add(REPO, model)
        named = hub.endpoint if source == "mirror" else source
        settings = replace(Asker(hub, tmp_path).settings, source=named, ca_file=tmp_path / "ca.pem")
        assert_pinned(sources.pin(settings, network=sources.through(proxy)), model)
        assert set(dialed) == {urlsplit(hub.endpoint).port}


def test_a_proxy_that_fails_is_named(hub: Hub, ask: Asker) -> None:
    def dial(host: str, port: int) -> socket.socket:
        raise OSError("no route from gpu-1")

    with netproxy.serve(dial) as proxy, pytest.raises(HubUnreachable) as failed:
        settings = replace(ask.settings, source="huggingface", huggingface_endpoint="https://h.lan")
        sources.pin(settings, network=sources.through(proxy))
    proxy_place = urlsplit(proxy).netloc.rpartition("@")[2]
    assert failed.value.message == (
        f"h.lan cannot be reached from here through the proxy {proxy_place}: "
        "the proxy says: 502 no route from gpu-1"
    )


class TestGitLfs:
    def test_large_files_come_by_its_api(self, ask: Asker, hub: Hub, model: Path) -> None:
        pinned = ask(f"git-lfs+{hub.git_url(REPO)}")
        assert_pinned(pinned, model)
        lfs = pinned.upstreams[0].entry
        assert (lfs["kind"], lfs["url"]) == ("git-lfs", f"{hub.git_url(REPO)}/info/lfs")
        assert lfs["paths"] == [FIRST, SECOND]
        assert read(pinned, FIRST) == (model / FIRST).read_bytes()
        origin = pinned.manifest.origin
        assert origin and origin.commit == hub.repositories[REPO].head.id

    def test_small_files_come_from_the_hub_that_has_it(self, ask: Asker, model: Path) -> None:
        pinned = ask("git-lfs")
        assert pinned.share is None
        small = [one.path for one in pinned.manifest.artifacts if one.path not in (FIRST, SECOND)]
        assert pinned.upstreams[1].entry["paths"] == sorted(small)
        for path in small:
            assert read(pinned, path) == (model / path).read_bytes()

    def test_small_files_come_from_here_otherwise(self, ask: Asker, hub: Hub, model: Path) -> None:
        elsewhere = "http://other.invalid"
        pinned = ask(
            f"git-lfs+{hub.git_url(REPO)}",
            huggingface_endpoint=elsewhere,
            modelscope_endpoint=elsewhere,
        )
        (lfs,) = pinned.upstreams
        assert pinned.share is not None
        contents = pinned.share.contents()
        assert {one.path for one in pinned.manifest.artifacts} == {*contents, *lfs.entry["paths"]}
        for path, content in contents.items():
            with content.open(1) as reader:
                assert reader.read() == (model / path).read_bytes()[1:]

    def test_a_commit_can_be_named(self, ask: Asker, hub: Hub, tmp_path: Path) -> None:
        first = ask("git-lfs")
        assert first.manifest.origin
        hub.commit(REPO, make_model(tmp_path / "newer", seed=1))
        assert ask("git-lfs").manifest != first.manifest
        again = ask("git-lfs", revision=first.manifest.origin.commit)
        assert again.manifest == first.manifest

    @pytest.mark.parametrize("revision", ["--upload-pack=touch /tmp/x", "a b", "a..b;c"])
    def test_a_revision_is_no_option(self, ask: Asker, revision: str) -> None:
        with pytest.raises(UsageError, match="is no branch, tag or commit"):
            ask("git-lfs", revision=revision)

    def test_a_token_opens_it(self, ask: Asker, hub: Hub, model: Path, tmp_path: Path) -> None:
        hub.add("Qwen/Own", model, token="granted")
        failed = ask.fails("git-lfs", HubRefused, name="Qwen/Own")
        assert "refuses everyone without a token, or is not there" in failed.message
        (tmp_path / "token").write_text("granted")
        pinned = ask("git-lfs", name="Qwen/Own", modelscope_token_file=tmp_path / "token")
        assert_pinned(pinned, model)
        assert pinned.upstreams[0].entry["headers"]["Authorization"].startswith("Basic ")
        assert read(pinned, FIRST) == (model / FIRST).read_bytes()
        assert "Basic" not in repr(pinned)

    def test_what_is_no_repository_is_told(self, ask: Asker, hub: Hub) -> None:
        failed = ask.fails(f"git-lfs+{hub.endpoint}/nowhere", HubMissing)
        assert failed.message.endswith("/nowhere is no git repository: it answers 404")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def folder_url(model: Path) -> Iterator[str]:
    server = LoopbackServer(partial(Quiet, directory=str(model)))  # type: ignore[arg-type]
    server.start()
    yield f"http://127.0.0.1:{server.port}"
    server.stop()


class TestMirror:
    def test_a_hub_of_either_kind_is_known(self, ask: Asker, hub: Hub, model: Path) -> None:
        for hidden, kind in (("modelscope", "huggingface"), ("huggingface", "modelscope")):
            hub.rules[:] = [Rule("@*", "status", hub=hidden, status=404)]  # type: ignore[arg-type]
            pinned = ask(hub.endpoint)
            assert_pinned(pinned, model)
            assert pinned.manifest.origin and pinned.manifest.origin.source == kind
            assert pinned.upstreams[0].name == urlsplit(hub.endpoint).netloc

    def test_a_missing_model_is_said_by_its_kind(self, ask: Asker, hub: Hub) -> None:
        failed = ask.fails(hub.endpoint, HubMissing, name="Qwen/Absent")
        assert "has no model Qwen/Absent" in failed.message

    @pytest.mark.parametrize(("ending", "way"), [("", ""), (".git", "git-lfs+")])
    def test_the_page_of_a_model_is_told_from_its_mirror(
        self, ask: Asker, hub: Hub, ending: str, way: str
    ) -> None:
        hub.rules.append(Rule(f"/{REPO}*", "status", status=404))
        failed = ask.fails(f"{hub.endpoint}/{REPO}{ending}", HubMissing)
        named = f"{way}{hub.endpoint}/{REPO}.git" if ending else hub.endpoint
        assert failed.hint == f"Name the mirror and the model: --weights {named} --model {REPO}"

    def test_a_folder_with_sums_will_do(self, ask: Asker, model: Path, folder_url: str) -> None:
        failed = ask.fails(folder_url, HubMissing)
        assert "has neither manifest.json nor SHA256SUMS" in failed.message
        paths = [path for path in model.rglob("*") if path.is_file()]
        lines = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()} *./{path.relative_to(model)}\n"
            for path in paths
        ]
        (model / "SHA256SUMS").write_text("".join(lines))
        pinned = ask(folder_url)
        assert pinned.manifest.proof == "sums"
        (model / "SHA256SUMS").unlink()
        assert_pinned(pinned, model)
        assert read(pinned, "assets/生 词.txt") == (model / "assets/生 词.txt").read_bytes()

    def test_a_folder_with_a_manifest_will_do(
        self, ask: Asker, model: Path, folder_url: str
    ) -> None:
        own = json.loads(ask(str(model)).manifest.to_json())
        (model / "manifest.json").write_text(json.dumps(own | {"revision": "c" * 40}))
        pinned = ask(folder_url)
        assert pinned.manifest.revision == "c" * 40
        (model / "config.json").write_text('{"model_type": "other"}')
        (ask.settings.cache_dir / "pins.json").unlink()
        failed = ask.fails(folder_url, ListRefused)
        assert failed.message.endswith("/config.json: other bytes come than are listed")

    @pytest.mark.parametrize("name", ["../../evil", "/etc/evil"])
    def test_a_folder_that_leads_out_is_refused(
        self, ask: Asker, model: Path, folder_url: str, name: str
    ) -> None:
        (model / "SHA256SUMS").write_text(f"{'a' * 64}  {name}\n{'a' * 64}  config.json\n")
        failed = ask.fails(folder_url, ListRefused)
        assert "makes no sense" in failed.message

    def test_a_listed_file_that_is_missing_is_told(
        self, ask: Asker, model: Path, folder_url: str
    ) -> None:
        (model / "SHA256SUMS").write_text(f"{'a' * 64}  absent.json\n")
        failed = ask.fails(folder_url, ListRefused)
        assert failed.message.endswith(" lists absent.json, but answers 404 for it")
