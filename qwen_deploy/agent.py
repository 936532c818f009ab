"""The host's weights program as one file that its python3 runs. Does not know how it gets there."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

_MAIN = """\
import sys

from qwen_weights.__main__ import main

sys.exit(main())
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest that zip knows: the same sources give the same bytes


def pack_agent(package_dir: Path) -> bytes:
    """`package_dir` is the folder of the package `qwen_weights`."""
    sources = {
        f"{package_dir.name}/{path.relative_to(package_dir).as_posix()}": path.read_bytes()
        for path in package_dir.rglob("*.py")
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted({"__main__.py": _MAIN.encode(), **sources}.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, whatever packs it
            archive.writestr(entry, content)
    return packed.getvalue()
