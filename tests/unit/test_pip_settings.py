"""The machine's pip configuration, read as pip reads it."""

from __future__ import annotations

from pathlib import Path

from tests.pip_settings import PipSettings, load


def settings(tmp_path: Path, text: str, **environment: str) -> PipSettings:
    path = tmp_path / "own.conf"
    path.write_text(text)
    return load({"HOME": str(tmp_path), "PIP_CONFIG_FILE": str(path), **environment})


def test_all_settings_are_read(tmp_path: Path) -> None:
    indexes = "index-url = https://a/\nextra-index-url = https://b/ https://c/\n"
    links = f"find-links =\n    {tmp_path}\n    https://d/\n"
    found = settings(tmp_path, f"[global]\n{indexes}{links}cert = /ca.pem\n")
    assert found == PipSettings(
        "https://a/", ("https://b/", "https://c/"), (str(tmp_path), "https://d/"), Path("/ca.pem")
    )
    assert found.local_folders == (tmp_path,)


def test_install_section_and_environment_come_before_global(tmp_path: Path) -> None:
    text = "[install]\nindex-url = https://install/\n[global]\nindex-url = https://global/\n"
    assert settings(tmp_path, text).index_url == "https://install/"
    over = settings(tmp_path, text, PIP_INDEX_URL="https://environment/")
    assert over.index_url == "https://environment/"


def test_no_file_is_read_when_pip_is_told_so(tmp_path: Path) -> None:
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip/pip.conf").write_text("[global]\nindex-url = https://a/\n")
    assert load({"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}).index_url is None


def test_the_wheels_beside_a_local_index_are_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "simple").mkdir()
    found = PipSettings(f"file://{tmp_path}/simple", (), ("https://x/",), None)
    assert found.local_folders == (tmp_path,)


def test_uv_gets_the_same_sources() -> None:
    found = PipSettings("https://a/", ("https://b/",), ("/wheels",), Path("/ca.pem"))
    assert found.uv_arguments() == (
        *("--default-index", "https://a/", "--index", "https://b/", "--find-links", "/wheels"),
        *("--index-strategy", "unsafe-best-match"),
    )
    assert found.uv_environment() == {"SSL_CERT_FILE": "/ca.pem"}
    assert PipSettings(None, (), (), None).uv_arguments() == ()


def test_its_text_is_read_back_as_the_same_settings(tmp_path: Path) -> None:
    found = PipSettings("https://a/", ("https://b/", "https://c/"), ("/w",), Path("/ca.pem"))
    assert settings(tmp_path, found.configuration()) == found
