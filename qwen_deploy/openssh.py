"""How to reach hosts: as settings of ours, and as arguments for the `ssh` program, which Ansible
runs and a person would. Opens no connection.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from qwen_deploy import commands
from qwen_deploy.inventory import Host

# ssh_config(5), IdentityFile; those that paramiko looks for as well.
DEFAULT_KEYS = ("id_rsa", "id_ecdsa", "id_ed25519")


@dataclass(frozen=True, slots=True)
class SshSettings:
    """How to reach hosts. `jump` is `[user@]address[:port]`, as `ssh -J` takes it."""

    user: str | None = None
    key_file: Path | None = None
    config_file: Path | None = None
    jump: Host | None = None
    connect_seconds: float = 10.0
    accept_new_host_key: bool = False
    sudo_password: str | None = None

    def __repr__(self) -> str:
        return f"SshSettings(user={self.user!r}, key_file={self.key_file!r}, jump={self.jump!r})"


def arguments(settings: SshSettings) -> str:
    """The same choices as arguments for the `ssh` program, which Ansible runs."""
    home = Path("~").expanduser()
    words = []
    config_file = settings.config_file
    # OpenSSH takes the home folder from the user database, everything else from $HOME.
    if home != Path(pwd.getpwuid(os.getuid()).pw_dir):
        own = home / ".ssh" / "config"
        config_file = config_file or (own if own.is_file() else None)
        words += ["-o", f"UserKnownHostsFile={home / '.ssh' / 'known_hosts'}"]
        for key in DEFAULT_KEYS:
            path = home / ".ssh" / key
            words += ["-o", f"IdentityFile={path}"] if path.is_file() else []
    words += ["-F", str(config_file)] if config_file else []
    words += ["-o", f"ConnectTimeout={int(settings.connect_seconds)}"]
    words += ["-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"]
    if settings.jump:
        # `-J` would take neither the key nor the known hosts along to the jump host.
        through = ["ssh", *words, *_words(settings.jump, settings), "-W", "[%h]:%p"]
        words += ["-o", f"ProxyCommand={commands.quote([*through, settings.jump.address])}"]
    return commands.quote(words)


def destination(host: Host, settings: SshSettings) -> str:
    """What a person would write after `ssh` to get to the same place."""
    return commands.quote([*_words(host, settings), host.address])


def _words(host: Host, settings: SshSettings) -> list[str]:
    user = host.user or settings.user
    words = ["-p", str(host.port)] if host.port else []
    words += ["-l", user] if user else []
    return [*words, *(["-i", str(settings.key_file)] if settings.key_file else [])]
