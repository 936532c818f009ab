"""Every command run on a host outside a playbook, as argv, and the parsers of what they print.

The only quoting happens here. What they change on a host: the lock, the audit line, and the
transient unit that receives weights. Knows no sessions, no retries, no terminal.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

UNITS = ("qwen.service", "qwen.socket")
NO_SUDO, NEEDS_PASSWORD, NO_PYTHON = 91, 92, 93

# Becomes root in whichever way the host allows. $1 says whether standard input starts with the
# sudo password; that line is always consumed, so that it can never reach the program.
_AS_ROOT = """\
with_password=$1; shift
if [ "$(id -u)" = 0 ]; then
  [ "$with_password" = no ] || read -r _
  exec "$@"
fi
command -v sudo >/dev/null 2>&1 || exit 91
if sudo -n true 2>/dev/null; then
  [ "$with_password" = no ] || read -r _
  exec sudo -n -- "$@"
fi
[ "$with_password" = yes ] || exit 92
exec sudo -k -S -p '' -- "$@"
"""


def quote(argv: Sequence[str]) -> str:
    return shlex.join(argv)


def as_root(argv: Sequence[str], *, with_password: bool) -> list[str]:
    # C locale: what sudo says is read by `sudo_refusal`.
    return ["env", "LC_ALL=C", "sh", "-c", _AS_ROOT, "sh", "yes" if with_password else "no", *argv]


_DENIALS = ("is not in the sudoers file", "may not run sudo", "is not allowed to execute")


def sudo_refusal(exit_status: int, stderr: str) -> str | None:
    """Why sudo did not run the program, in words that end a sentence about the host."""
    if exit_status == NO_SUDO:
        return "is not root and the host has no sudo"
    if exit_status == NEEDS_PASSWORD:
        return "needs a password for sudo"
    # A host that does not know its own name says so before anything else, and runs the program.
    warning = "sudo: unable to resolve host"
    said = [line for line in stderr.splitlines() if line and not line.startswith(warning)]
    if any(denial in stderr for denial in _DENIALS):
        return "may not use sudo"
    if "incorrect password attempt" in stderr or "no password was provided" in stderr:
        return "gave a wrong sudo password"
    if exit_status == 1 and said and said[0].startswith("sudo: "):
        return f"cannot use sudo ({said[0]})"
    return None


@cache
def _program(name: str) -> str:
    return (resources.files("qwen_deploy") / "host_side" / f"{name}.py").read_text("utf-8")


def _python(program: str, *arguments: str) -> list[str]:
    # Python itself may be what is missing, and that must be told apart from a failing program.
    check = 'command -v python3 >/dev/null 2>&1 || exit 93; exec python3 -I -c "$@"'
    return ["sh", "-c", check, "sh", _program(program), *arguments]


def facts(wanted: Mapping[str, Any]) -> list[str]:
    return _python("facts", json.dumps(wanted, sort_keys=True))


def lock(owner: Mapping[str, str]) -> list[str]:
    return _python("lock", json.dumps(owner, sort_keys=True))


def parse_lock_owner(line: str) -> Mapping[str, Any]:
    """Empty where the holder has not yet said who it is."""
    try:
        owner = json.loads(line)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def record(line: Mapping[str, Any]) -> list[str]:
    return _python("record", json.dumps(line, sort_keys=True, ensure_ascii=False))


def journal(unit: str, *, lines: int, since: str | None = None, follow: bool = False) -> list[str]:
    argv = ["journalctl", "--unit", unit, "--no-pager", "--output", "short-iso", "--lines"]
    argv.append(str(lines))
    return argv + (["--since", since] if since else []) + (["--follow"] if follow else [])


def read_file(path: str) -> list[str]:
    return ["cat", "--", path]


TRANSFER_UNIT = "qwen-weights.service"
TRANSFER_DIR = "/run/qwen-deploy-weights"
TRANSFER_STATUS = f"{TRANSFER_DIR}/status.json"
TRANSFER_AGENT = f"{TRANSFER_DIR}/agent.pyz"

# Unpacks the archive on standard input into a fresh folder, then runs the rest of its arguments.
# A transfer whose operator is gone has nobody to read from and makes room.
_UNPACK_AND_RUN = """\
systemctl stop "$1" 2>/dev/null
rm -rf "$2" && umask 077 && mkdir -p "$2" "$3" && tar -xC "$2" && shift 3 && exec "$@"
"""


def start_transfer(port: int, state_dir: str) -> list[str]:
    """Expects a tar archive with agent.pyz, manifest.json and token on standard input."""
    unit = [
        *("systemd-run", "--quiet", "--collect", "--unit", TRANSFER_UNIT),
        *("-p", "Nice=10", "-p", "IOSchedulingClass=idle", "-p", "NoNewPrivileges=yes"),
        *("-p", "ProtectSystem=strict", "-p", f"ReadWritePaths={state_dir} {TRANSFER_DIR}"),
        *("-p", "ProtectHome=yes", "-p", "PrivateTmp=yes"),
    ]
    agent = [
        *("python3", TRANSFER_AGENT, "pull", "--manifest", f"{TRANSFER_DIR}/manifest.json"),
        *("--root", state_dir, "--status", TRANSFER_STATUS),
        *("--source", f"http://127.0.0.1:{port}", "--token-file", f"{TRANSFER_DIR}/token"),
    ]
    places = [TRANSFER_UNIT, TRANSFER_DIR, state_dir]
    return ["sh", "-c", _UNPACK_AND_RUN, "sh", *places, *unit, *agent]


def stop_transfer() -> list[str]:
    forget = 'systemctl stop "$1" 2>/dev/null; rm -rf "$2"'
    return ["sh", "-c", forget, "sh", TRANSFER_UNIT, TRANSFER_DIR]


def forget_runs() -> list[str]:
    """Removes what Ansible leaves in the login user's home (ansible.cfg, remote_tmp)."""
    return ["sh", "-c", 'rm -rf "$HOME/.qwen-deploy"']


def remove_lock() -> list[str]:
    return ["rm", "-f", "/run/qwen-deploy.lock"]
