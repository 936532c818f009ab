"""`python3 -m tests.install python|lab|test`: installs what the Makefile's targets need.

Runs on a bare Debian with the standard library alone; takes addresses from this machine's own pip
and apt configuration. Does not know what the targets do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests import pip_settings
from tests.lab.shell import ADMINISTRATION_FOLDERS, PACKAGE_OF_PROGRAM

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# Without a place of its own to find PyTorch's CPU build, a machine gets it from PyTorch's index:
# the one on PyPI brings gigabytes of CUDA.
CPU_BUILD = ("--torch-backend", "cpu")
OF_TESTS = {
    "sshd": "openssh-server",
    "git": "git",
    "git-lfs": "git-lfs",
    "curl": "curl",
    "zstd": "zstd",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
}


def main() -> None:
    steps = {
        "python": install_python_packages,
        "lab": install_lab_packages,
        "test": install_test_packages,
    }
    steps[sys.argv[1]]()


def install_python_packages() -> None:
    """Into .venv: both distributions, editable, with the tools that lint and test them."""
    if not PYTHON.exists():
        # Without pip it needs no python3-venv; uv is the one thing that pip installs.
        _run(sys.executable, "-m", "venv", "--without-pip", VENV)
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        _apt_install(["python3-pip"])
    _run(*_pip(), "install", "--disable-pip-version-check", _pinned("uv"))
    pip = pip_settings.load()
    has_own_places = pip.find_links or pip.extra_index_urls
    _run(
        *(VENV / "bin" / "uv", "pip", "install", "--quiet", "--no-config", "--python", PYTHON),
        *pip.uv_arguments(),
        *(() if has_own_places else CPU_BUILD),
        *("--editable", ROOT, "--editable", ROOT / "service"),
        *("--group", f"{ROOT}/pyproject.toml:lint", "--group", f"{ROOT}/pyproject.toml:test"),
        environment={"UV_SYSTEM_CERTS": "1", **pip.uv_environment()},
    )


def install_lab_packages() -> None:
    """The programs with which the lab makes, boots and connects its hosts."""
    _apt_install(_missing(PACKAGE_OF_PROGRAM))


def install_test_packages() -> None:
    """Those of the lab, what the loopback hub and its clients run, and sshd: tests start their
    own, and the machine gets no server of it."""
    missing = _missing(OF_TESTS)
    for unit in ("ssh.service", "ssh.socket") if "openssh-server" in missing else ():
        mask = Path("/etc/systemd/system") / unit
        if not mask.exists():
            mask.parent.mkdir(parents=True, exist_ok=True)
            mask.symlink_to("/dev/null")
    _apt_install([*_missing(PACKAGE_OF_PROGRAM), *missing])


def _missing(package_of_program: Mapping[str, str]) -> list[str]:
    path = f"{os.environ.get('PATH', os.defpath)}:{ADMINISTRATION_FOLDERS}"
    needed = package_of_program.items()
    return sorted({package for program, package in needed if not shutil.which(program, path=path)})


def _apt_install(packages: Sequence[str]) -> None:
    if not packages:
        return
    if os.geteuid() != 0:
        sys.exit(f"error: root is needed for: apt-get install {' '.join(packages)}")
    environment = {"DEBIAN_FRONTEND": "noninteractive", "DEBCONF_NOWARNINGS": "yes"}
    _say(f"apt-get install {' '.join(packages)}")
    apt = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300")
    _run(*apt, "update", environment=environment)
    install = (*apt, "install", "--yes", "--no-install-recommends")
    _run(*install, *packages, environment=environment, output=subprocess.DEVNULL)


def _pip() -> tuple[str | Path, ...]:
    # Warnings off: pip has one for every package that an index on disk does not hold.
    return (sys.executable, "-m", "pip", "-qq", "--python", PYTHON)


def _pinned(name: str) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return next(str(one) for one in project["dependencies"] if one.startswith(f"{name}=="))


def _run(
    *argv: str | Path, environment: dict[str, str] | None = None, output: int | None = None
) -> None:
    done = subprocess.run(argv, env={**os.environ, **(environment or {})}, stdout=output)
    if done.returncode:
        command = " ".join(map(str, argv))
        sys.exit(f"error: this ended with {done.returncode}: {command}")


def _say(text: str) -> None:
    print(f"make: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
