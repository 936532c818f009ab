from __future__ import annotations

import configparser
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qwen_weights import manifest
from qwen_weights.manifest import Artifact

from qwen_deploy import release
from qwen_deploy.release import Release
from tests.fakes import MANIFEST, MODEL, deployment, release_of

RELEASE = release_of()
GPU = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
MIG = "MIG-3f1b0a52-0f25-4c5e-8c71-1a5d2c1f0b77"
OTHER_WEIGHTS = manifest.make(MODEL, [Artifact("config.json", 100, "b" * 64)])


def settings(made: Release) -> dict[str, str]:
    lines = made.files["environment"].decode().splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def test_the_same_inputs_give_the_same_id_and_the_same_bytes() -> None:
    again = release_of()
    assert re.fullmatch(r"r-[0-9a-f]{8}", RELEASE.id)
    assert again.id == RELEASE.id
    assert again.pack() == RELEASE.pack()


INPUTS: dict[str, dict[str, Any]] = {
    "alias": {"model": {"aliases": ["qwen"]}},
    "port": {"service": {"port": 8001}},
    "address": {"service": {"address": "127.0.0.1"}},
    "auth": {"service": {"auth": False}},
    "device": {"service": {"device": "cpu"}},
    "dtype": {"service": {"dtype": "bfloat16"}},
    "batch": {"service": {"max_batch": 8}},
    "queue": {"service": {"max_queue": 8}},
    "context": {"service": {"max_context": 8192}},
    "kv memory": {"service": {"kv_memory": "8GiB"}},
    "threads": {"service": {"threads": 8}},
    "drain": {"service": {"drain_seconds": 5}},
    "metrics": {"service": {"metrics": "key"}},
    "prompts": {"service": {"log_prompts": True}},
    "basic": {"service": {"basic_auth": True}},
    "web ui": {"service": {"web_ui": False}},
    "origins": {"service": {"cors_origins": ["https://chat.example.com"]}},
    "python": {"runtime": {"python": "/usr/bin/python3.12"}},
}


@pytest.mark.parametrize("sections", INPUTS.values(), ids=INPUTS)
def test_whatever_decides_what_is_served_changes_the_id(sections: dict[str, Any]) -> None:
    assert release_of(**sections).id != RELEASE.id


def test_weights_and_accelerator_change_the_id() -> None:
    weights = release.make(deployment(), OTHER_WEIGHTS, "cpu")
    cuda = release.make(deployment(), MANIFEST, "cuda")
    assert len({RELEASE.id, weights.id, cuda.id}) == 3
    assert weights.model_dir != RELEASE.model_dir
    assert cuda.venv_id != RELEASE.venv_id


@pytest.mark.parametrize(
    "sections",
    [
        {"pip": {"index_url": "tsinghua"}},
        {"ssh": {"user": "ops"}},
        {"hosts": ["gpu-9"]},
        {"service": {"ready_seconds": 5}},
    ],
    ids=["mirror", "ssh", "hosts", "patience"],
)
def test_whatever_does_not_decide_what_is_served_keeps_the_id(sections: dict[str, Any]) -> None:
    assert release_of(**sections).id == RELEASE.id


def test_an_environment_belongs_to_a_lock_and_an_interpreter() -> None:
    assert release_of(service={"port": 9000}).venv_id == RELEASE.venv_id
    assert release_of(runtime={"python": "/opt/python3"}).venv_id != RELEASE.venv_id
    assert RELEASE.venv_dir == f"/opt/qwen-deploy/venvs/{RELEASE.venv_id}"


@pytest.fixture
def archive() -> Iterator[tarfile.TarFile]:
    with tarfile.open(fileobj=io.BytesIO(RELEASE.pack())) as opened:
        # As an attribute: the argument came with Python 3.11.4, and Debian 12 has 3.11.2.
        opened.extraction_filter = lambda member, path: member
        yield opened


def test_the_archive_unpacks_to_the_release_directory(
    archive: tarfile.TarFile, tmp_path: Path
) -> None:
    archive.extractall(tmp_path)
    root = tmp_path / RELEASE.id
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {str(path.relative_to(root)): path.read_bytes() for path in files} == RELEASE.files
    links = [path for path in root.rglob("*") if path.is_symlink()]
    assert {path.name: os.readlink(path) for path in links} == {
        "venv": RELEASE.venv_dir,
        "model": RELEASE.model_dir,
    }


def test_the_archive_says_who_may_read_and_nothing_of_this_machine(
    archive: tarfile.TarFile,
) -> None:
    members = archive.getmembers()
    assert {one.mode for one in members if one.isdir()} == {0o755}
    assert {one.mode for one in members if one.isfile()} == {0o644}
    assert {(one.uid, one.gid, one.uname, one.mtime) for one in members} == {(0, 0, "", 0)}
    assert RELEASE.pack()[4:8] == bytes(4), "the time in gzip's header"


def test_the_archive_names_each_directory_before_what_lies_in_it(
    archive: tarfile.TarFile,
) -> None:
    seen = {""}
    for member in archive.getmembers():
        assert os.path.dirname(member.name) in seen
        seen.add(member.name)


def test_a_release_holds_sources_only() -> None:
    names = set(RELEASE.files)
    assert {"release.json", "environment", *release.INSTALLED} <= names
    assert "service/qwen_service/__main__.py" in names
    assert "service/qwen_weights/__main__.py" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_record_says_what_the_release_was_made_of() -> None:
    record = json.loads(RELEASE.files["release.json"])
    assert record["model"] == MODEL
    assert record["revision"] == MANIFEST.revision
    assert record["engine"] == "transformers"
    assert record["accelerator"] == "cpu"
    assert record["python"] == "python3"
    assert record["listen"] == "0.0.0.0:8000"
    assert record["lock"] == release.sha256(RELEASE.lock)
    assert record["settings"] == release.environment(deployment(), MANIFEST)
    files = {name: release.sha256(RELEASE.files[name]) for name in record["files"]}
    assert record["files"] == files


def test_only_named_gpus_are_visible_and_all_where_none_is_named() -> None:
    named = release_of(service={"gpus": [GPU, MIG]})
    assert settings(named)["CUDA_VISIBLE_DEVICES"] == f"{GPU},{MIG}"
    assert "CUDA_VISIBLE_DEVICES" not in settings(release_of())
    assert named.id != release_of().id


def test_settings_reach_the_service_as_its_environment() -> None:
    made = release_of(
        model={"aliases": ["gpt-3.5-turbo", "qwen"]},
        service={
            "auth": False,
            "max_context": 8192,
            "threads": 2,
            "log_prompts": True,
            "cors_origins": ["https://a.example", "*"],
        },
    )
    assert settings(made) == {
        "QWEN_RELEASE": made.id,
        "QWEN_MODEL_DIR": "/opt/qwen-deploy/current/model",
        "QWEN_MODEL_NAME": MODEL,
        "QWEN_MODEL_REVISION": MANIFEST.revision,
        "QWEN_MODEL_ALIASES": "gpt-3.5-turbo,qwen",
        "QWEN_ENGINE": "transformers",
        "QWEN_DEVICE": "auto",
        "QWEN_DTYPE": "auto",
        "QWEN_AUTH": "none",
        "QWEN_KEYS_FILE": "/etc/qwen-deploy/keys",
        "QWEN_MAX_BATCH": "32",
        "QWEN_MAX_QUEUE": "128",
        "QWEN_MAX_CONTEXT": "8192",
        "QWEN_KV_MEMORY": "",
        "QWEN_THREADS": "2",
        "QWEN_DRAIN_SECONDS": "30",
        "QWEN_METRICS": "open",
        "QWEN_LOG_PROMPTS": "on",
        "QWEN_BASIC_AUTH": "off",
        "QWEN_WEB_UI": "on",
        "QWEN_CORS_ORIGINS": "https://a.example,*",
    }


@pytest.mark.parametrize("value", ['"hi"', "back\\slash", "$HOME", "`x`", "it's", "你好"])
def test_a_setting_survives_the_quoting_of_an_environment_file(value: str) -> None:
    made = release_of(model={"aliases": [value]})
    line = next(
        line
        for line in made.files["environment"].decode().splitlines()
        if line.startswith("QWEN_MODEL_ALIASES=")
    )
    # In double quotes a shell takes back what systemd.exec(5) takes back, and also $ and `.
    shell = line.replace("$", "\\$").replace("`", "\\`")
    done = subprocess.run(
        ["sh", "-c", f'{shell}; printf %s "$QWEN_MODEL_ALIASES"'], capture_output=True, check=True
    )
    assert done.stdout.decode() == value


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("0.0.0.0", "ListenStream=0.0.0.0:8000"),
        ("127.0.0.1", "ListenStream=127.0.0.1:8000"),
        ("::", "ListenStream=[::]:8000"),
        ("2001:db8::1", "ListenStream=[2001:db8::1]:8000"),
    ],
)
def test_the_port_replaces_the_socket_units_own(address: str, line: str) -> None:
    made = release_of(service={"address": address})
    assert (
        made.files["units/qwen.socket.d/listen.conf"].decode()
        == f"[Socket]\nListenStream=\n{line}\n"
    )


def test_everything_managed_is_named_with_what_it_should_be() -> None:
    managed = RELEASE.managed
    directory = f"/opt/qwen-deploy/releases/{RELEASE.id}"
    for name, data in RELEASE.files.items():
        assert managed[f"{directory}/{name}"] == release.sha256(data)
    files = {f"{directory}/{name}" for name in RELEASE.files}
    assert {path: digest for path, digest in managed.items() if path not in files} == {
        **{
            f"/etc/systemd/system/{name}": release.sha256(RELEASE.files[f"units/{name}"])
            for name in ("qwen.service", "qwen.socket", "qwen.socket.d/listen.conf")
        },
        f"{directory}/venv": f"-> {RELEASE.venv_dir}",
        f"{directory}/model": f"-> {RELEASE.model_dir}",
        "/opt/qwen-deploy/current": f"-> {directory}",
        f"{RELEASE.venv_dir}/.complete": release.sha256(release.sha256(RELEASE.lock).encode()),
    }
    assert RELEASE.model_dir == (
        f"/var/lib/qwen-deploy/models/Qwen--Qwen2.5-7B-Instruct/{MANIFEST.revision}"
    )


def test_the_hosts_own_state_is_its_directories_and_its_pip_configuration() -> None:
    made = deployment(pip={"index_url": "tsinghua"})
    assert release.host_state(made) == {
        "/etc/qwen-deploy": "directory",
        "/etc/systemd/system/qwen.socket.d": "directory",
        "/var/lib/qwen-deploy": "directory",
        "/opt/qwen-deploy/releases": "directory",
        "/opt/qwen-deploy/venvs": "directory",
        release.PIP_CONF: release.sha256(release.pip_conf(made)),
    }


def test_the_pip_configuration_is_what_pip_reads() -> None:
    links = ["/srv/wheels", "https://wheels.example.org/"]
    made = deployment(
        pip={
            "index_url": "https://a%40b:p%25w@pypi.example.org/simple",
            "extra_index_urls": ["https://two.example.org/simple"],
            "find_links": links,
            "ca_file": "/etc/ssl/own.pem",
        }
    )
    parser = configparser.RawConfigParser()  # as pip itself
    parser.read_string(release.pip_conf(made).decode())
    section = parser["global"]
    assert section["index-url"] == "https://a%40b:p%25w@pypi.example.org/simple"
    assert section["extra-index-url"].split() == ["https://two.example.org/simple"]
    assert section["find-links"].split() == links
    assert section["cert"] == "/etc/ssl/own.pem"


def test_a_pip_configuration_without_extras_names_the_index_alone() -> None:
    assert release.pip_conf(deployment()) == b"[global]\nindex-url = https://pypi.org/simple\n"
