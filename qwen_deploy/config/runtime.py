"""Sections `runtime` and `pip`: the Python environment on the host, and where its packages come
from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from qwen_deploy.config.fields import Section, Text

PIP_MIRRORS = {
    "pypi": "https://pypi.org/simple",
    "aliyun": "https://mirrors.aliyun.com/pypi/simple/",
    "huaweicloud": "https://repo.huaweicloud.com/repository/pypi/simple",
    "tencent": "https://mirrors.cloud.tencent.com/pypi/simple",
    "tsinghua": "https://pypi.tuna.tsinghua.edu.cn/simple",
    "ustc": "https://mirrors.ustc.edu.cn/pypi/simple",
}
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


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
