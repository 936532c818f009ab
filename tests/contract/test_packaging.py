"""The wheel does outside any checkout what the checkout does. Builds both for real."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwen_deploy import __version__

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = "qwen_deploy/_bundle/"
BUNDLED = ("playbooks", "service/qwen_service", "systemd")
WEIGHTS = ROOT / "service" / "qwen_weights"
SHOW_RELEASE = """
import hashlib
from qwen_deploy import config, release
from qwen_weights import manifest
one = manifest.make("Qwen/Fixture", [manifest.Artifact("config.json", 1, "0" * 64)])
for accelerator in ("cpu", "cuda"):
    made = release.make(config.Deployment(), one, accelerator)
    print(made.id, made.venv_id, hashlib.sha256(made.pack()).hexdigest())
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """The wheel in an environment of its own, with its dependencies within reach."""

    bin: Path
    elsewhere: Path

    def run(self, *argv: str | Path) -> str:
        return run(self.bin / argv[0], *argv[1:], cwd=self.elsewhere)


def run(*argv: str | Path, cwd: Path = ROOT) -> str:
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "QWEN_LAB")
    done = subprocess.run(
        argv,
        cwd=cwd,
        env={name: text for name, text in os.environ.items() if name not in left_out},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, out: Path, *kinds: str) -> Path:
    """The wheel; without kinds it is built from an sdist that was built first."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, *kinds, source)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "--wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    environment = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    run(uv, "pip", "install", "--offline", "--no-deps", "--python", python, wheel)
    # A path named in a .pth file has its own .pth files ignored: the checkout stays out of reach.
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(environment / "bin", tmp_path_factory.mktemp("elsewhere"))


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def bundled_files() -> dict[str, bytes]:
    locks = (ROOT / "service").glob("requirements-*.lock")
    folders = [path for name in BUNDLED for path in (ROOT / name).rglob("*")]
    return {
        f"{BUNDLE}{path.relative_to(ROOT).as_posix()}": path.read_bytes()
        for path in (*locks, *folders)
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_program_and_all_that_goes_to_hosts(wheel: Path) -> None:
    files = content(wheel)
    assert {name: data for name, data in files.items() if name.startswith(BUNDLE)} == (
        bundled_files()
    )
    weights = {path for path in WEIGHTS.rglob("*") if "__pycache__" not in path.parts}
    assert {name: data for name, data in files.items() if name.startswith("qwen_weights/")} == {
        path.relative_to(WEIGHTS.parent).as_posix(): path.read_bytes()
        for path in weights
        if path.is_file()
    }
    beside = {name.split("/")[0] for name in files}
    assert beside == {"qwen_deploy", "qwen_weights", f"qwen_deploy-{__version__}.dist-info"}
    assert not [name for name in files if "__pycache__" in name or "/test" in name]
    assert f"qwen_deploy-{__version__}.dist-info/licenses/LICENSE" in files


def test_an_sdist_gives_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    assert content(build(ROOT, tmp_path)) == content(wheel)


def test_the_service_is_a_distribution_of_its_own(tmp_path: Path) -> None:
    names = set(content(build(ROOT / "service", tmp_path)))
    assert {"qwen_service/__main__.py", "qwen_weights/__main__.py"} <= names
    assert not any("__pycache__" in name for name in names)


def test_the_installed_program_runs_outside_any_checkout(installed: Installed) -> None:
    origin = installed.run("python", "-c", "import qwen_deploy; print(qwen_deploy.__file__)")
    assert Path(origin).is_relative_to(installed.bin.parent)
    assert installed.run("qwen-deploy", "--version") == f"qwen-deploy {__version__}\n"
    assert "service:" in installed.run("qwen-deploy", "docs")
    installed.run("qwen-deploy", "init", "--host", "root@192.0.2.1")
    assert "root@192.0.2.1" in (installed.elsewhere / "qwen-deploy.yml").read_text("utf-8")


def test_the_installed_program_makes_the_same_release_as_the_checkout(
    installed: Installed,
) -> None:
    of_wheel = installed.run("python", "-c", SHOW_RELEASE)
    assert of_wheel == run(sys.executable, "-c", SHOW_RELEASE)
    assert len(of_wheel.splitlines()) == 2


def test_the_installed_program_finds_uv(installed: Installed) -> None:
    show = "from qwen_deploy import bundle; print(bundle.uv_path())"
    assert Path(installed.run("python", "-c", show).strip()).is_file()
