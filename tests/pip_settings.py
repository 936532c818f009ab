"""How this machine installs Python packages: pip's configuration files and PIP_* variables.

Knows pip's documented order of precedence. Does not know who asks, and writes no address down.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True)
class PipSettings:
    index_url: str | None
    extra_index_urls: tuple[str, ...]
    find_links: tuple[str, ...]
    ca_file: Path | None

    @property
    def local_folders(self) -> tuple[Path, ...]:
        """Folders that an installation reads, so that a host can be shown the same."""
        addresses = (*self.find_links, *self.extra_index_urls, self.index_url or "")
        folders = {_local_folder(address) for address in addresses}
        return tuple(sorted(folder for folder in folders if folder and folder.is_dir()))

    def uv_arguments(self) -> tuple[str, ...]:
        arguments = ["--default-index", self.index_url] if self.index_url else []
        for address in self.extra_index_urls:
            arguments += ["--index", address]
        for address in self.find_links:
            arguments += ["--find-links", address]
        if self.extra_index_urls:
            # pip takes the best version of all indexes, uv otherwise the first index that has any.
            arguments += ["--index-strategy", "unsafe-best-match"]
        return tuple(arguments)

    def uv_environment(self) -> dict[str, str]:
        return {"SSL_CERT_FILE": str(self.ca_file)} if self.ca_file else {}

    def configuration(self) -> str:
        """The same settings as the text of a pip.conf."""
        lines = ["[global]"]
        if self.index_url:
            lines.append(f"index-url = {self.index_url}")
        if self.extra_index_urls:
            lines.append(f"extra-index-url = {' '.join(self.extra_index_urls)}")
        if self.find_links:
            lines.append(f"find-links = {' '.join(self.find_links)}")
        if self.ca_file:
            lines.append(f"cert = {self.ca_file}")
        return "\n".join(lines) + "\n"


def load(environment: Mapping[str, str] = os.environ) -> PipSettings:
    values: dict[str, str] = {}
    for path in _configuration_files(environment):
        values |= _parse(path)
    for key in ("index-url", "extra-index-url", "find-links", "cert"):
        if value := environment.get("PIP_" + key.upper().replace("-", "_")):
            values[key] = value
    return PipSettings(
        index_url=values.get("index-url"),
        extra_index_urls=tuple(values.get("extra-index-url", "").split()),
        find_links=tuple(values.get("find-links", "").split()),
        ca_file=Path(values["cert"]) if values.get("cert") else None,
    )


def _configuration_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Least important first: https://pip.pypa.io/en/stable/topics/configuration/"""
    only = environment.get("PIP_CONFIG_FILE")
    if only == os.devnull:
        return ()
    home = Path(environment.get("HOME") or Path.home())
    everyone = environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
    user = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    return (
        *(Path(folder) / "pip/pip.conf" for folder in everyone if folder),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        user / "pip/pip.conf",
        Path(sys.prefix) / "pip.conf",
        *((Path(only),) if only else ()),
    )


def _parse(path: Path) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    parser.read(path, encoding="utf-8")
    sections = [parser[name] for name in ("global", "install") if parser.has_section(name)]
    return {key.replace("_", "-"): value for section in sections for key, value in section.items()}


def _local_folder(address: str) -> Path | None:
    parts = urlsplit(address)
    if parts.scheme not in ("", "file") or not parts.path.startswith("/"):
        return None
    folder = Path(unquote(parts.path))
    # The pages of an index at .../simple point to files beside it.
    return folder.parent if folder.name == "simple" else folder
