"""Where the files for hosts are: in the installed wheel, else in the checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _root() -> Path:
    installed = _PACKAGE / "_bundle"
    return installed if installed.is_dir() else _PACKAGE.parent


def playbooks_dir() -> Path:
    return _root() / "playbooks"


def systemd_dir() -> Path:
    return _root() / "systemd"


def service_dir() -> Path:
    """Holds the packages qwen_service and qwen_weights, and the lock files."""
    return _root() / "service"


def lock_path(engine: str, accelerator: str) -> Path:
    return service_dir() / f"requirements-{engine}-{accelerator}.lock"


def uv_path() -> Path:
    import uv

    return Path(uv.find_uv_bin())
