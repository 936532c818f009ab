"""Where the files for hosts are: in the installed wheel, else in the checkout."""

from __future__ import annotations

from pathlib import Path

import qwen_weights

_PACKAGE = Path(__file__).resolve().parent


def _root() -> Path:
    installed = _PACKAGE / "_bundle"
    return installed if installed.is_dir() else _PACKAGE.parent


def playbooks_dir() -> Path:
    return _root() / "playbooks"


def systemd_dir() -> Path:
    return _root() / "systemd"


def service_dir() -> Path:
    """Holds the package qwen_service, and the lock files."""
    return _root() / "service"


def weights_dir() -> Path:
    """The package qwen_weights: the one that this program imports too."""
    return Path(qwen_weights.__file__).resolve().parent


def service_files() -> dict[str, bytes]:
    """The programs that run on hosts, as `service/...`."""
    return {
        f"service/{path.relative_to(package.parent).as_posix()}": path.read_bytes()
        for package in (service_dir() / "qwen_service", weights_dir())
        for path in sorted(package.rglob("*"))
        if path.is_file() and _is_shipped(path)
    }


def shipped_files() -> dict[str, bytes]:
    """Everything that a host gets from this program, but for playbooks: `service/`, `systemd/`."""
    units = {path.name: path for path in systemd_dir().iterdir() if _is_shipped(path)}
    return {
        **service_files(),
        **{f"systemd/{name}": path.read_bytes() for name, path in sorted(units.items())},
    }


def _is_shipped(path: Path) -> bool:
    return "__pycache__" not in path.parts and not path.name.startswith(".")


def lock_path(engine: str, accelerator: str) -> Path:
    return service_dir() / f"requirements-{engine}-{accelerator}.lock"


def uv_path() -> Path:
    import uv

    return Path(uv.find_uv_bin())
