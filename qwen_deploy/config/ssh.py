"""Section `ssh`: how hosts are reached."""

from __future__ import annotations

from pydantic import Field

from qwen_deploy.config.fields import HostText, LocalPath, Positive, Section, Text


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
