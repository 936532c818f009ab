from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from qwen_deploy import config, reference
from qwen_deploy.complaints import complaint
from qwen_deploy.config import Deployment
from qwen_deploy.errors import UsageError

SECTIONS = "hosts, model, weights, service, runtime, pip, ssh"
SERVICE_KEYS = (
    "address, port, auth, api_key_file, device, gpus, dtype, max_batch, max_queue, max_context, "
    "kv_memory, threads, drain_seconds, web_ui, metrics, log_prompts, basic_auth, cors_origins, "
    "ready_seconds"
)
WRONG = {
    "[1]": "should be a mapping of keys",
    "text": "should be a mapping of keys",
    "x: 1": f"x: is not a key; should be one of {SECTIONS}",
    "1: 2": "1: is not a key",
    "hots: [a]": "hots: is not a key; did you mean `hosts`?",
    "service: 3": "service: should be a mapping of keys",
    "service: [port]": "service: should be a mapping of keys",
    "service: {prot: 80}": "service/prot: is not a key; did you mean `port`?",
    "service: {zzz: 1}": f"service/zzz: is not a key; should be one of {SERVICE_KEYS}",
    "service: {1: 2}": "service/1: is not a key",
    "service: {gpus: ['0']}": "service/gpus/0: should be a UUID like "
    "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    "service: {port: eighty}": "service/port: should be a whole number",
    "service: {port: '80'}": "service/port: should be a whole number",
    "service: {port: 80.5}": "service/port: should be a whole number",
    "service: {port: true}": "service/port: should be a whole number",
    "service: {port: 0}": "service/port: should be greater than 0",
    "service: {port: 65536}": "service/port: should be less than 65536",
    "service: {max_batch: 0}": "service/max_batch: should be greater than 0",
    "service: {kv_memory: half}": 'service/kv_memory: should be a text like "8GiB" or "0.5"',
    "service: {auth: 1}": "service/auth: should be true or false",
    "service: {auth: 'no'}": "service/auth: should be true or false",
    "service: {device: gpu}": "service/device: should be 'auto', 'cpu' or 'cuda'",
    "service: {dtype: int8}": (
        "service/dtype: should be 'auto', 'float32', 'bfloat16' or 'float16'"
    ),
    "service: {address: localhost}": "service/address: should be an IPv4 or IPv6 address",
    "service: {address: 'fe80::1%eth0'}": "service/address: should be an IPv4 or IPv6 address",
    "service: {api_key_file: 3}": "service/api_key_file: should be a path",
    "model: {source: ''}": "model/source: should not be empty",
    'model: {source: "a\\nb"}': "model/source: should be a text on one line",
    "model: {name: 'a b'}": "model/name: should be a name like Qwen/Qwen2.5-7B-Instruct",
    "model: {name: ../../etc}": "model/name: should be a name like Qwen/Qwen2.5-7B-Instruct",
    "model: {name: 2024-01-01}": "model/name: should be a text",
    "model: {aliases: qwen}": "model/aliases: should be a list",
    "model: {aliases: [qwen, 1]}": "model/aliases/1: should be a text",
    "model: {aliases: ['a,b']}": "model/aliases/0: should be a name without blank or comma",
    "weights: {limit_rate: 20 MB}": (
        "weights/limit_rate: should be bytes a second, at least 1k, like 500k, 20M or 1G, as text"
    ),
    "weights: {limit_rate: 0.0001k}": (
        "weights/limit_rate: should be bytes a second, at least 1k, like 500k, 20M or 1G, as text"
    ),
    "weights: {limit_rate: 20000000}": "weights/limit_rate: should be a text",
    "weights: {night: 22-6}": "weights/night: should be like 22:00-06:00",
    "weights: {proxy: proxy:3128}": "weights/proxy: should be an http(s):// URL",
    "weights: {fan_out: star}": "weights/fan_out: should be 'auto', 'tree' or 'none'",
    "weights: {fan_out_port: -1}": "weights/fan_out_port: should be at least 0",
    "weights: {ca_file: [a]}": "weights/ca_file: should be a path",
    "pip: {index_url: tsingua}": (
        "pip/index_url: should be a URL or one of pypi, aliyun, huaweicloud, tencent, tsinghua, "
        "ustc"
    ),
    "pip: {find_links: /srv}": "pip/find_links: should be a list",
    "runtime: {accelerator: rocm}": "runtime/accelerator: should be 'auto', 'cpu' or 'cuda'",
    "ssh: {key_file: [a]}": "ssh/key_file: should be a path",
    "ssh: {jump: 'a b'}": "ssh/jump: should be [user@]address[:port]",
    "ssh: {connect_seconds: -1}": "ssh/connect_seconds: should be greater than 0",
    "hosts: gpu-1": "hosts: should be a list",
    "hosts: [[gpu-1]]": "hosts/0: should be a text",
    "hosts: [gpu-1, -oX=y]": "hosts/1: should be [user@]address[:port]",
    "hosts:\n- &a [*a]": "an alias holds itself",
}


def load(tmp_path: Path, text: str) -> Deployment:
    path = tmp_path / "qwen-deploy.yml"
    path.write_text(text, "utf-8")
    return config.load(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UsageError) as refused:
        load(tmp_path, text)
    return refused.value.message.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_key_is_named_with_what_it_should_be(
    tmp_path: Path, text: str, message: str
) -> None:
    assert refusal(tmp_path, text) == f"qwen-deploy.yml: {message}"


@pytest.mark.parametrize(
    "content", [{"named": {"service": {"prot": 1}}}, {"listed": [{"prot": 1}]}]
)
def test_the_near_key_is_found_in_sections_of_a_list_and_of_names(content: Any) -> None:
    class Many(BaseModel):
        named: dict[str, config.Service] = {}
        listed: list[config.Service] = []

    with pytest.raises(ValidationError) as wrong:
        Many.model_validate(content)
    (item,) = wrong.value.errors()
    assert complaint(item, Many).endswith("/prot: is not a key; did you mean `port`?")


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    assert refusal(tmp_path, "hosts: 1\nservice: {port: x, auth: 2}") == (
        "qwen-deploy.yml: hosts: should be a list\n"
        "       qwen-deploy.yml: service/port: should be a whole number\n"
        "       qwen-deploy.yml: service/auth: should be true or false"
    )


NOT_YAML = {
    "hosts: []\nservice: {port: 80": "line 2: expected ',' or '}', but got '<stream end>'",
    "hosts:\n\t- a": "line 2: found character '\\t' that cannot start any token",
    "hosts: !!python/object/apply:os.system [touch /tmp/x]": (
        "line 1: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system'"
    ),
    "hosts: [\x07]": (
        "unacceptable character #x0007: special characters are not allowed in "
        '"<unicode string>", position 8'
    ),
}


@pytest.mark.parametrize(("text", "problem"), NOT_YAML.items())
def test_a_file_that_is_not_yaml_is_refused_with_the_place(
    tmp_path: Path, text: str, problem: str
) -> None:
    assert refusal(tmp_path, text) == f"qwen-deploy.yml: is not YAML: {problem}"


REPEATED = {
    "service: {threads: 8}\nservice: {port: 80}": "service: is given twice, in lines 1 and 2",
    "service:\n  threads: 8\n  port: 80\n  'threads': 0": (
        "service/threads: is given twice, in lines 2 and 4"
    ),
    "hosts: []\nhosts: []\n\nhosts: []": "hosts: is given 3 times, in lines 1, 2 and 4",
    "model: {<<: {name: Q/q}, <<: {source: auto}}": "model/<<: is given twice in line 1",
    "hosts: [{a: 1, a: 2}]": "hosts/0/a: is given twice in line 1",
    "? {a: 1}\n: 1\n? {a: 1}\n: 2": "is not YAML: line 1: found unhashable key",
}


@pytest.mark.parametrize(("text", "message"), REPEATED.items(), ids=REPEATED)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text) == f"qwen-deploy.yml: {message}"


def test_every_key_that_is_given_twice_is_named_at_once(tmp_path: Path) -> None:
    assert refusal(tmp_path, "x: 1\nservice: {port: 1, port: 2}\nx: 2") == (
        "qwen-deploy.yml: x: is given twice, in lines 1 and 3\n"
        "       qwen-deploy.yml: service/port: is given twice in line 2"
    )


def test_a_file_without_a_bottom_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "hosts: " + "[" * 10_000) == "qwen-deploy.yml: is nested too deeply"


def test_a_key_may_outweigh_the_same_one_of_an_anchor(tmp_path: Path) -> None:
    made = load(tmp_path, "weights: &a {ca_file: ./a}\npip: {<<: *a, ca_file: /b}")
    assert (made.weights.ca_file, made.pip.ca_file) == (Path("a"), "/b")


def test_a_missing_file_is_refused_with_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        config.load(tmp_path / "nowhere.yml")
    assert refused.value.message == f"{tmp_path}/nowhere.yml: no such file"
    assert refused.value.hint == "qwen-deploy init"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("hosts: [mün]".encode("latin-1"))
    for path in (tmp_path, tmp_path / "latin"):
        with pytest.raises(UsageError, match=f"^{re.escape(str(path))}: cannot be read: "):
            config.load(path)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "service:\n", "service: {port: }"])
def test_what_is_not_given_stands_at_its_default(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == Deployment()


def test_paths_start_at_home_where_they_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    made = load(tmp_path, "ssh: {key_file: ~/.ssh/gpu}\nservice: {api_key_file: ./key}")
    assert made.ssh.key_file == Path("/home/anna/.ssh/gpu")
    assert made.service.api_key_file == Path("key")


@pytest.mark.parametrize(
    ("given", "url"),
    [*config.PIP_MIRRORS.items(), ("http://10.0.0.1:3141/simple", "http://10.0.0.1:3141/simple")],
)
def test_a_mirror_is_known_by_its_name(given: str, url: str) -> None:
    made = config.parse({"pip": {"index_url": given}}, origin="test")
    assert made.pip.resolved_index_url == url


def test_the_command_line_outweighs_the_file() -> None:
    made = config.parse({"service": {"port": 80, "threads": 2}, "hosts": ["a"]}, origin="test")
    own: dict[str, dict[str, Any]] = {
        "service": {"port": 8100, "auth": False},
        "model": {"source": None},
    }
    changed = config.override(made, own)
    assert (changed.service.port, changed.service.auth) == (8100, False)
    assert (changed.service.threads, changed.hosts) == (2, ("a",))
    assert config.override(made, {"service": {"port": None}}) == made


def test_a_wrong_option_is_named_like_a_wrong_key() -> None:
    with pytest.raises(UsageError, match=r"^command line: service/port: should be less"):
        config.override(Deployment(), {"service": {"port": 70000}})


def test_the_reference_is_a_file_of_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, reference.text()) == Deployment()


def uncommented(text: str) -> str:
    return re.sub(r"^( *)# (?=[a-z_]+: )", r"\1", text, flags=re.MULTILINE)


def test_every_commented_key_of_the_reference_is_valid(tmp_path: Path) -> None:
    made = load(tmp_path, uncommented(reference.text()))
    assert made.hosts == ("root@192.168.110.131",)
    assert made.ssh.key_file == Path("~/.ssh/gpu").expanduser()
    assert made.service.max_context == 8192


def test_the_keys_of_the_reference_are_the_fields_in_order() -> None:
    written = yaml.safe_load(uncommented(reference.text()))
    assert list(written) == list(Deployment.model_fields)
    for name, field in Deployment.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            assert list(written[name]) == list(field.annotation.model_fields)


def test_every_key_of_the_reference_is_explained() -> None:
    lines = reference.text().splitlines()
    keys = [at for at, line in enumerate(lines) if re.match(r" *(# )?[a-z_]+:( |$)", line)]
    sections = (field.annotation for field in Deployment.model_fields.values())
    fields = [one for one in sections if isinstance(one, type) and issubclass(one, BaseModel)]
    assert len(keys) == len(Deployment.model_fields) + sum(len(one.model_fields) for one in fields)
    assert all(lines[at - 1].lstrip().startswith("# ") for at in keys)
    assert max(map(len, lines)) <= 100


def test_chosen_values_stand_uncommented(tmp_path: Path) -> None:
    chosen = {"hosts": ["root@gpu-1", "主机"], "model": {"source": "./模型 7B: a"}}
    made = load(tmp_path, reference.text(chosen))
    assert made == config.parse(chosen, origin="test")
    assert "\nhosts: [root@gpu-1, 主机]\n" in reference.text(chosen)


def test_cpu_packages_come_from_pytorchs_index_unless_another_place_is_named() -> None:
    assert config.Pip().indexes_beside("cpu") == (config.PYTORCH_CPU_INDEX,)
    assert config.Pip().indexes_beside("cuda") == ()
    assert config.Pip(find_links=("/wheels",)).indexes_beside("cpu") == ()
    assert config.Pip(extra_index_urls=("https://x/simple",)).indexes_beside("cpu") == (
        "https://x/simple",
    )
