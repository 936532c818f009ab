"""A deployed service as its clients see it, and its host as root sees it; never through us."""

from __future__ import annotations

import json
from typing import Any

from openai import OpenAI

from tests.lab import Host

ROOT = "/opt/qwen-deploy"
LASTING = ("/etc", "/opt", "/root", "/home", "/usr/local", "/srv", "/var/lib", "/var/cache", "/run")
# What the system itself writes as packages come and go and people log in.
OF_SYSTEM = (
    *("/var/lib/apt", "/var/lib/dpkg", "/var/lib/systemd", "/var/cache/apt"),
    *("/run/systemd", "/run/agetty.reload", "/run/motd.dynamic"),
)


def client(host: Host, key: str, port: int = 8000) -> OpenAI:
    return OpenAI(
        base_url=f"http://{host.address}:{port}/v1", api_key=key, max_retries=0, timeout=60
    )


def answer(host: Host, key: str, prompt: str, port: int = 8000) -> str:
    """What the official client gets from outside the host."""
    reply = client(host, key, port).chat.completions.create(
        model="Qwen/Fixture",
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
    )
    return reply.choices[0].message.content or ""


def ready(host: Host, port: int = 8000) -> dict[str, Any]:
    """The body of /ready, asked on the host itself."""
    done = host.run(
        ["curl", "-s", "--max-time", "20", f"http://127.0.0.1:{port}/ready"], check=False
    )
    body: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return body


def current(host: Host) -> str:
    """The release that `current` points to; empty where there is none."""
    done = host.run(["readlink", f"{ROOT}/current"], check=False)
    return done.stdout.strip().rpartition("/")[2]


def unit(host: Host, name: str = "qwen.service") -> dict[str, str]:
    shown = host.run(["systemctl", "show", name]).stdout
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def snapshot(host: Host) -> dict[str, str]:
    """Everything of the host that a removal must bring back, as one text a matter."""
    skipped = [word for path in OF_SYSTEM for word in ("-path", path, "-prune", "-o")]
    files = host.run(["find", *LASTING, *skipped, "-print"]).stdout
    return {
        "files": "\n".join(sorted(files.splitlines())),
        "packages": host.run(["dpkg-query", "-W", "-f", "${Package} ${Status}\n"]).stdout,
        "users": host.read("/etc/passwd") + host.read("/etc/group"),
        "units": host.run("systemctl list-unit-files --no-legend --no-pager").stdout,
        "owners": host.run("stat -c '%n %U %G %a' /etc /usr /var /root /opt /var/lib").stdout,
    }
