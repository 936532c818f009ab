"""What to deploy: the annotated schema of qwen-deploy.yml, and its validation.

The models below are the one source: they validate the file, and reference.py prints them. Knows no
hosts' state and no network.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)
from qwen_weights.manifest import MODEL

from qwen_deploy.complaints import complaint
from qwen_deploy.errors import UsageError
from qwen_deploy.inventory import parse_host
from qwen_deploy.sizes import RATES, rate_bytes

DEFAULT_PATH = Path("qwen-deploy.yml")

PIP_MIRRORS = {
    "pypi": "https://pypi.org/simple",
    "aliyun": "https://mirrors.aliyun.com/pypi/simple/",
    "huaweicloud": "https://repo.huaweicloud.com/repository/pypi/simple",
    "tencent": "https://mirrors.cloud.tencent.com/pypi/simple",
    "tsinghua": "https://pypi.tuna.tsinghua.edu.cn/simple",
    "ustc": "https://mirrors.ustc.edu.cn/pypi/simple",
}


def _checked(is_valid: Callable[[str], object], expected: str) -> AfterValidator:
    """`is_valid` returns something false, or raises, for what it does not take."""

    def check(text: str) -> str:
        with suppress(ValueError, UsageError):
            if is_valid(text):
                return text
        raise ValueError(f"should be {expected}")

    return AfterValidator(check)


def _is_address(text: str) -> bool:
    # systemd.socket(5) takes no names, and an interface only after the port.
    return "%" not in text and bool(ipaddress.ip_address(text))


PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

Text = Annotated[str, Field(min_length=1), _checked(str.isprintable, "a text on one line")]
Name = Annotated[str, _checked(MODEL.fullmatch, "a name like Qwen/Qwen2.5-7B-Instruct")]
Alias = Annotated[str, _checked(re.compile(r"[^\s,]+").fullmatch, "a name without blank or comma")]
Origin = Annotated[
    str,
    _checked(
        re.compile(r"\*|https?://[^\s/,*]+").fullmatch,
        "an origin like https://chat.example.com, or *",
    ),
]
Address = Annotated[str, _checked(_is_address, "an IPv4 or IPv6 address")]
HostText = Annotated[str, _checked(parse_host, "[user@]address[:port]")]
Gpu = Annotated[
    str,
    _checked(
        re.compile(r"(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch,
        "a UUID like GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    ),
]
Positive = Annotated[int, Field(gt=0)]
LocalPath = Annotated[
    Path, BeforeValidator(lambda text: Path(text).expanduser() if isinstance(text, str) else text)
]
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
Rate = Annotated[
    str,
    _checked(
        rate_bytes,
        f"{RATES}, as text",
    ),
]
Memory = Annotated[
    str,
    _checked(
        re.compile(r"0?\.[0-9]+|[0-9]+(?:[KMGT]i?B?)?").fullmatch, 'a text like "8GiB" or "0.5"'
    ),
]
Hours = Annotated[str, _checked(re.compile(rf"{_CLOCK}-{_CLOCK}").fullmatch, "like 22:00-06:00")]
Url = Annotated[
    str, _checked(re.compile(r"https?://[^\s/]+(?:/\S*)?").fullmatch, "an http(s):// URL")
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(Section):
    source: Text = Field(
        "auto",
        description="Where the checkpoint comes from. auto (modelscope or huggingface, whichever "
        "is quicker from the host, the other one when it fails), modelscope, huggingface, git-lfs, "
        "the https:// URL of a mirror, a folder or an archive (tar, tar.gz, tar.zst, zip) on this "
        "machine, or host:/path for one that lies on the hosts. Only safetensors is loaded.",
    )
    revision: Text | None = Field(
        None,
        description="Branch, tag or commit at the hub; its default branch where none is given. "
        "What the hosts hold stays until another one is named or `up --refresh` asks again.",
        examples=["main"],
    )
    name: Name = Field(
        "Qwen/Qwen2.5-7B-Instruct",
        description="Name under which clients ask for the model.",
    )
    aliases: tuple[Alias, ...] = Field(
        ("gpt-3.5-turbo", "Qwen"),
        description="Further names that mean the same model, for clients with a fixed name.",
    )


class Weights(Section):
    connections: Positive = Field(4, description="Files that a host reads at the same time.")
    retry_seconds: Positive = Field(
        600, description="Seconds without a byte from any source after which a host gives up."
    )
    limit_rate: Rate | None = Field(
        None,
        description="Bytes a second that a host reads from a hub or from this machine, by day.",
        examples=["20M"],
    )
    night_rate: Rate | None = Field(
        None, description="The same by night; as by day where none is given.", examples=["100M"]
    )
    night: Hours = Field("22:00-06:00", description="When it is night, in the host's local time.")
    fan_out: Literal["auto", "tree", "none"] = Field(
        "auto",
        description="With several hosts: auto lets the first read the hub and each other one from "
        "the host before it, while that still receives; tree from one of fewer steps; none lets "
        "every host read the hub.",
    )
    fan_out_port: int = Field(
        0, ge=0, lt=65536, description="Port on which hosts read from each other; 0 takes any."
    )
    huggingface_endpoint: Url | None = Field(
        None,
        description="Mirror of huggingface.co; else $HF_ENDPOINT.",
        examples=["https://hf-mirror.com"],
    )
    modelscope_endpoint: Url | None = Field(
        None,
        description="Mirror of www.modelscope.cn; else $MODELSCOPE_ENDPOINT.",
        examples=["https://models.example.com"],
    )
    huggingface_token_file: LocalPath | None = Field(
        None, description="File on this machine with a token.", examples=["./hf-token.txt"]
    )
    modelscope_token_file: LocalPath | None = Field(
        None, description="File on this machine with a token.", examples=["./ms-token.txt"]
    )
    proxy: Url | None = Field(
        None,
        description="HTTP proxy through which hosts reach hubs.",
        examples=["http://proxy.example.com:3128"],
    )
    ca_file: LocalPath | None = Field(
        None,
        description="CA bundle on this machine with which hubs and mirrors are checked.",
        examples=["./ca.pem"],
    )

    @property
    def rates(self) -> tuple[int | None, int | None]:
        """Bytes a second by day and by night; None is no limit."""
        day = rate_bytes(self.limit_rate)
        return day, (rate_bytes(self.night_rate) if self.night_rate else day)


class Service(Section):
    address: Address = Field(
        "0.0.0.0",
        description="Address to listen on. 127.0.0.1 serves the host itself and SSH tunnels only.",
    )
    port: int = Field(8000, gt=0, lt=65536, description="Port to listen on.")
    auth: bool = Field(
        True,
        description="Ask clients for an API key. The first `up` makes one and shows it once; "
        "hosts store hashes.",
    )
    api_key_file: LocalPath | None = Field(
        None,
        description="File on this machine with an API key to accept, instead of one made by `up`.",
        examples=["./api-key.txt"],
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    gpus: tuple[Gpu, ...] = Field(
        (),
        description="UUIDs of the GPUs, or of one MIG instance, that the service may use, as "
        "`nvidia-smi -L` shows them; all where none is named. Several share the layers of a model "
        "that none has room for.",
        examples=[["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"]],
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the weights; auto takes the checkpoint's."
    )
    max_batch: Positive = Field(32, description="Requests that generate at the same time.")
    max_queue: Positive = Field(
        128, description="Requests that may wait; one more is answered 429 with Retry-After."
    )
    max_context: Positive | None = Field(
        None, description="Tokens of prompt and answer; at most the model's own.", examples=[8192]
    )
    kv_memory: Memory | None = Field(
        None,
        description="Memory for what running requests keep of their tokens: bytes, or a share of "
        "what is free once the model is loaded; 0.9 of it on GPUs and 0.5 on CPUs by default.",
        examples=["8GiB"],
    )
    threads: Positive | None = Field(
        None, description="CPU threads of the engine; PyTorch decides by default.", examples=[8]
    )
    drain_seconds: Positive = Field(
        30, description="Seconds that running requests get to finish when the unit stops."
    )
    web_ui: bool = Field(
        True,
        description="Serve a chat page at /. Who opens it logs in with an API key, unless auth is "
        "false. It takes memory only once somebody does, and asks no other host for anything.",
    )
    metrics: Literal["open", "key", "off"] = Field(
        "open",
        description="Who may read /metrics: open to everyone, with a key, or off. It tells the "
        "names of keys, how much they ask, and nothing of what is said.",
    )
    log_prompts: bool = Field(
        False,
        description="Write prompts and answers to the journal, up to 2000 characters of each.",
    )
    basic_auth: bool = Field(
        False,
        description="Also take an API key as the password of Basic authentication, as clients of "
        "the original demo send it.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        (),
        description="Origins whose pages may ask from a browser; * stands for all.",
        examples=[["https://chat.example.com"]],
    )
    ready_seconds: Positive = Field(
        1800, description="Seconds a release may take to be ready before it is rolled back."
    )


class Runtime(Section):
    python: Text = Field(
        "python3",
        description="Python on the host that the environment is made from, 3.11 or newer.",
        examples=["/usr/bin/python3.11"],
    )
    accelerator: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Which locked set of packages to install: PyTorch's CPU build, or the one "
        "with CUDA. auto: cuda where the host has an NVIDIA driver.",
    )


class Pip(Section):
    index_url: Text = Field(
        "pypi",
        description="Package index: a URL, or the name of a well-known mirror: "
        + ", ".join(PIP_MIRRORS)
        + ".",
    )
    extra_index_urls: tuple[Text, ...] = Field(
        (),
        description="Further indexes. The CPU packages come from PyTorch's own index where neither "
        "this nor find_links names another place.",
    )
    find_links: tuple[Text, ...] = Field(
        (), description="Folders on the host, or URLs of pages, with wheels."
    )
    ca_file: Text | None = Field(
        None,
        description="CA bundle on the host with which indexes are checked.",
        examples=["/etc/ssl/certs/ca-certificates.crt"],
    )

    @field_validator("index_url")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in PIP_MIRRORS and "://" not in value:
            raise ValueError("should be a URL or one of " + ", ".join(PIP_MIRRORS))
        return value

    @property
    def resolved_index_url(self) -> str:
        return PIP_MIRRORS.get(self.index_url, self.index_url)

    def indexes_beside(self, accelerator: str) -> tuple[str, ...]:
        """PyTorch's CPU build is on no package index but its own."""
        is_missing = accelerator == "cpu" and not self.extra_index_urls and not self.find_links
        return (PYTORCH_CPU_INDEX,) if is_missing else self.extra_index_urls


class Ssh(Section):
    user: Text | None = Field(None, description="User, where a host names none.", examples=["root"])
    key_file: LocalPath | None = Field(
        None, description="Private key; else the agent's and ~/.ssh's.", examples=["~/.ssh/gpu"]
    )
    config_file: LocalPath | None = Field(
        None, description="SSH client configuration instead of ~/.ssh/config.", examples=["./ssh"]
    )
    jump: HostText | None = Field(
        None,
        description="Jump host, as `ssh -J` takes it; ProxyJump of the SSH configuration works.",
        examples=["ops@bastion:22"],
    )
    sudo_password_file: LocalPath | None = Field(
        None,
        description="File on this machine with the sudo password, for users other than root.",
        examples=["./sudo-password.txt"],
    )
    connect_seconds: Positive = Field(10, description="Seconds to wait for a connection.")


class Deployment(Section):
    hosts: tuple[HostText, ...] = Field(
        (),
        description="Hosts to deploy to, as [user@]address[:port]; the first is changed first.",
        examples=[["root@192.168.110.131"]],
    )
    model: Model = Field(Model(), description="The model.")
    weights: Weights = Field(Weights(), description="How weights travel to the hosts.")
    service: Service = Field(Service(), description="The HTTP service.")
    runtime: Runtime = Field(Runtime(), description="The Python environment on the host.")
    pip: Pip = Field(
        Pip(), description="Where Python packages come from; also the service user's pip.conf."
    )
    ssh: Ssh = Field(Ssh(), description="How to reach the hosts.")


def load(path: Path) -> Deployment:
    """Disk to value. Raises UsageError that names the path to each wrong key."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file", hint="qwen-deploy init") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: is not YAML: {_problem(error)}") from error
    return parse(content if content is not None else {}, origin=str(path))


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def parse(content: Any, *, origin: str) -> Deployment:
    if not isinstance(content, Mapping):
        raise UsageError(f"{origin}: should be a mapping of keys", hint="qwen-deploy docs")
    try:
        return Deployment.model_validate(_tuples(content))
    except RecursionError as error:
        raise UsageError(f"{origin}: an alias holds itself") from error
    except ValidationError as error:
        lines = [f"{origin}: {complaint(item, Deployment)}" for item in error.errors()]
        raise UsageError("\n       ".join(lines), hint="qwen-deploy docs") from error


def override(deployment: Deployment, own: Mapping[str, Mapping[str, Any]]) -> Deployment:
    """With the values that the command line gave; None means not given."""
    content = deployment.model_dump()
    for section, values in own.items():
        content[section] |= {key: value for key, value in values.items() if value is not None}
    return parse(content, origin="command line")


def _tuples(value: Any) -> Any:
    """YAML has lists where the models have tuples; a key without a value stands at its default."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items() if item is not None}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
