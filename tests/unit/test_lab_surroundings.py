"""What the lab takes over from a machine's apt configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.shell import LabError
from tests.lab.surroundings import debian_sources, mirror_of

DEBIAN = """\
Types: deb
# http://comment.example/debian
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
"""
SECURITY = """\
Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""
FOREIGN = [
    "Types: deb\nURIs: https://third.example/\nSuites: nodistro\nComponents: main\n",
    "Types: deb\nURIs: https://third.example/\nSuites: bookworm\nComponents: stable\n",
    "Types: deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n",
    DEBIAN + "Enabled: no\n",
]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / "sources.list.d" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return folder


def test_debians_own_entries_are_taken_and_others_left(tmp_path: Path) -> None:
    write(tmp_path, "all.sources", "\n".join([DEBIAN, SECURITY, *FOREIGN]))
    found = debian_sources("bookworm", tmp_path)
    assert found == {".sources": f"{DEBIAN}\n{SECURITY}"}


@pytest.mark.parametrize("text", FOREIGN)
def test_a_machine_without_debians_archive_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(LabError, match="bookworm"):
        debian_sources("bookworm", write(tmp_path, "a.sources", text))


def test_classic_lines_are_taken_too(tmp_path: Path) -> None:
    line = "deb [arch=amd64] https://mirror.example/debian bookworm main contrib\n"
    (tmp_path / "sources.list").write_text(f"# {line}{line}deb-src http://x bookworm main\n")
    assert debian_sources("bookworm", tmp_path) == {".list": line}
    assert mirror_of(line) == "https://mirror.example/debian"


def test_the_mirror_is_the_archive_itself() -> None:
    assert mirror_of(f"{SECURITY}\n{DEBIAN}") == "http://mirror.example/debian"


def test_a_mirror_list_is_followed(tmp_path: Path) -> None:
    listed = tmp_path / "debian.list"
    listed.write_text("https://first.example/debian\nhttps://second.example/debian\n")
    stanza = DEBIAN.replace("http://mirror.example/debian", f"mirror+file://{listed}")
    assert mirror_of(stanza) == "https://first.example/debian"
