"""A bundle made with the real pip from a folder of wheels, and read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_deploy import airgap, bundle, folder
from qwen_deploy.config import Pip, Weights
from qwen_deploy.errors import UsageError
from qwen_deploy.events import Event, StageFinished
from qwen_deploy.packing import Contents, create, wheels
from qwen_deploy.share import Share
from qwen_deploy.sources import Pinned, Upstream
from tests.model_folder import make_model
from tests.tiny_wheel import lock_line, make_wheel

pytestmark = pytest.mark.contract

LINUX = "cp311-cp311-manylinux_2_28_x86_64"


class Workshop:
    """A model, wheels for several platforms, and an index that is nowhere."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.target = place / "out" / "qwen.tar"
        self.target.parent.mkdir()
        self.wheels = place / "wheels"
        self.lock = place / "requirements.lock"
        made = [make_wheel(self.wheels, "pure"), make_wheel(self.wheels, "native", tag=LINUX)]
        for tag in ("cp312-cp312-manylinux_2_28_x86_64", "cp311-cp311-win_amd64"):
            made.append(make_wheel(self.wheels, "native", tag=tag))
        lines = [lock_line(wheel) for wheel in made]
        hashes = [line.partition(" ")[2].strip() for line in lines[1:]]
        self.lock.write_text(f"{lines[0]}native==1.0 {' '.join(hashes)}\n")
        self.events: list[Event] = []
        self._model = make_model(place / "model", shard_bytes=3_000_000)
        self._cache = place / "hashes.json"
        monkeypatch.setattr(bundle, "lock_path", lambda engine, accelerator: self.lock)

    @property
    def report(self) -> folder.FolderReport:
        return folder.inspect(self._model, model="Qwen/Tiny", cache_path=self._cache)

    def create(self, *upstreams: Upstream) -> airgap.Bundle:
        """From the folder, or from elsewhere."""
        report = self.report
        pinned = Pinned(report.manifest, upstreams, None if upstreams else report)
        nowhere = f"file://{self.target.parent.absolute()}/no-index"
        pip = Pip(index_url=nowhere, extra_index_urls=(nowhere,), find_links=(str(self.wheels),))
        made = Contents(pinned, python="3.11", accelerator="cpu", pip=pip, settings=Weights())
        return create(self.target, made, self.events.append)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return Workshop(tmp_path, monkeypatch)


def test_a_bundle_holds_the_hosts_wheels_and_the_model(workshop: Workshop) -> None:
    made = workshop.create()
    names = [artifact.path for artifact in made.wheels.artifacts]
    assert names == [f"native-1.0-{LINUX}.whl", "pure-1.0-py3-none-any.whl"]
    assert made.problems() == ()
    assert made.lock == workshop.lock.read_bytes()
    shard = made.contents()["model-00001-of-00002.safetensors"]
    with shard.open(0) as reader:
        assert reader.read(shard.size)[-3_000_000:] in made.path.read_bytes()
    assert [path.name for path in workshop.target.parent.iterdir()] == ["qwen.tar"]
    stages = [one.stage for one in workshop.events if isinstance(one, StageFinished)]
    assert stages == ["wheels", "pack"]


def test_what_was_brought_before_a_failure_is_not_brought_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "BATCH", 2)
    whole = workshop.lock.read_text()
    workshop.lock.write_text(f"{whole}absent==1.0 --hash=sha256:{'a' * 64}\n")
    with pytest.raises(wheels.WheelsRefused) as refused:
        workshop.create()
    assert any("absent==1.0" in line for line in refused.value.evidence)
    assert not workshop.target.with_name("qwen.tar.part").exists()

    workshop.lock.write_text(whole)
    parts = workshop.target.with_name("qwen.tar.parts")
    (kept,) = parts.rglob("pure*.whl")
    kept.with_name("stray-1.0-py3-none-any.whl").write_text("of another lock file")
    for wheel in workshop.wheels.iterdir():
        wheel.unlink()
    made = workshop.create()
    assert len(made.wheels.artifacts) == 2
    assert not parts.exists()


def test_a_wheel_with_other_bytes_than_the_lock_file_says_is_refused(workshop: Workshop) -> None:
    path = workshop.wheels / "pure-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(wheels.WheelsRefused) as refused:
        workshop.create()
    assert any("HASH" in line.upper() for line in refused.value.evidence)
    assert not workshop.target.exists()


def upstream(share: Share, token: str) -> Upstream:
    url = f"{share.url}/{{path}}"
    return Upstream({"kind": "http", "name": "hub", "url": url, "token": token, "wan": True})


def test_weights_that_lie_elsewhere_are_brought_and_continued(workshop: Workshop) -> None:
    with Share(workshop.report) as share:
        with pytest.raises(UsageError, match=r"token|refused|401"):
            workshop.create(upstream(share, "wrong"))
        assert not list(workshop.target.parent.rglob("sources.json")), "it holds a token"
        made = workshop.create(upstream(share, share.token))
        served = share.served_bytes
    assert made.model == workshop.report.manifest
    assert made.problems() == ()
    assert served == made.model.total_bytes
    stages = [one.stage for one in workshop.events if isinstance(one, StageFinished)]
    assert stages == ["wheels", "wheels", "weights", "pack"]
    assert [path.name for path in workshop.target.parent.iterdir()] == ["qwen.tar"]


def test_weights_are_brought_for_a_file_in_the_current_folder(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workshop.target.parent)
    workshop.target = Path("qwen.tar")
    with Share(workshop.report) as share:
        assert workshop.create(upstream(share, share.token)).problems() == ()
    assert [path.name for path in Path().iterdir()] == ["qwen.tar"]
