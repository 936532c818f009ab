"""Every command run on a host outside a playbook, as argv, and the parsers of what they print.

The only quoting happens here. What they change on a host: the lock, the audit line, API keys, and
the transient unit that receives weights. Knows no sessions, no retries, no terminal.
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
  exec sudo -n -- env "SSH_CONNECTION=$SSH_CONNECTION" "$@"
fi
[ "$with_password" = yes ] || exit 92
exec sudo -k -S -p '' -- env "SSH_CONNECTION=$SSH_CONNECTION" "$@"
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


def keys(order: Mapping[str, Any]) -> list[str]:
    return _python("keys", json.dumps(order, sort_keys=True))


def journal(unit: str, *, lines: int, since: str | None = None, follow: bool = False) -> list[str]:
    argv = ["journalctl", "--unit", unit, "--no-pager", "--output", "short-iso", "--lines"]
    argv.append(str(lines))
    return argv + (["--since", since] if since else []) + (["--follow"] if follow else [])


def read_file(path: str) -> list[str]:
    return ["cat", "--", path]


TRANSFER_UNIT = "qwen-weights.service"
TRANSFER_DIR = "/run/qwen-deploy-weights"
TRANSFER_STATUS = f"{TRANSFER_DIR}/status.json"
TRANSFER_ORDER = f"{TRANSFER_DIR}/order.json"
TRANSFER_SOURCES = f"{TRANSFER_DIR}/sources.json"
TRANSFER_AGENT = f"{TRANSFER_DIR}/agent.pyz"
TRANSFER_CANCELED = "canceled"  # lies in that folder once somebody has ended the transfer
BUSY = 75  # EX_TEMPFAIL of sysexits.h
GOING_DOWN = 76
# Exit codes of the agent that another start would not change (service/qwen_weights/errors.py).
FINAL_EXITS = "2 10 11 12 13 14 16 19 20 130"

DOWN = "down"  # the kind of error of a transfer that ended with its host

# Whether a status file is that of a transfer with nothing left to bring.
_IS_DONE = """\
is_done() { python3 -I -c '
import json, sys
sys.exit(json.load(open(sys.argv[1]))["phase"] != "done")' "$1" 2>/dev/null; }
"""

# Unpacks the archive on standard input into a fresh folder, then runs the rest of its arguments,
# unless a transfer runs: the same one is joined, another one keeps the host busy. One that is done
# and only gives to others makes room. A systemd that starts nothing any more goes down, or is gone.
_RECEIVE = f"""{_IS_DONE}\
unit=$1 dir=$2 state=$3 id=$4; shift 4
case $(systemctl show -p ActiveState --value "$unit") in active|activating|reloading)
  if ! is_done "$dir/status.json"; then
    cat >/dev/null
    [ "$(cat "$dir/id" 2>/dev/null)" = "$id" ] || exit 75
    echo joined; exit 0
  fi
esac
systemctl stop "$unit" 2>/dev/null
rm -rf "$dir" && mkdir -p "$state" && umask 077 && mkdir -p "$dir" && tar -xC "$dir" || exit
echo "$id" >"$dir/id" && "$@" && {{ echo started; exit 0; }}
code=$?
case $(systemctl is-system-running 2>/dev/null) in
  running|degraded|starting|initializing|maintenance) exit "$code";;
esac
exit {GOING_DOWN}
"""


def start_transfer(order_id: str, state_dir: str, *, reads_host: bool = False) -> list[str]:
    """Expects a tar archive with agent.pyz, order.json and sources.json on standard input.

    One that reads a folder of the host sees the whole of it: a hard link cannot cross the mounts
    that a sandbox is made of."""
    sandbox = (
        *("-p", "ProtectSystem=strict", "-p", f"ReadWritePaths={state_dir} {TRANSFER_DIR}"),
        *("-p", "ProtectHome=yes", "-p", "PrivateTmp=yes"),
    )
    unit = [
        *("systemd-run", "--quiet", "--collect", "--unit", TRANSFER_UNIT),
        *("-p", "Nice=10", "-p", "IOSchedulingClass=idle", "-p", "NoNewPrivileges=yes"),
        *("-p", "Restart=on-failure", "-p", "RestartSec=2"),
        *("-p", f"RestartPreventExitStatus={FINAL_EXITS}", "-p", "SuccessExitStatus=130"),
        *(() if reads_host else sandbox),
    ]
    agent = ["python3", TRANSFER_AGENT, "pull", "--dir", TRANSFER_DIR]
    places = [TRANSFER_UNIT, TRANSFER_DIR, state_dir, order_id]
    return ["sh", "-c", _RECEIVE, "sh", *places, *unit, *agent]


def transfer_status() -> list[str]:
    """The status as one line of JSON, the state of the unit, and whether somebody ended it."""
    show = (
        'cat -- "$2" 2>/dev/null || echo null; '
        'systemctl show -p ActiveState --value "$1" || echo; '
        f'if [ -e "$3" ]; then echo {TRANSFER_CANCELED}; fi'
    )
    mark = f"{TRANSFER_DIR}/{TRANSFER_CANCELED}"
    return ["sh", "-c", show, "sh", TRANSFER_UNIT, TRANSFER_STATUS, mark]


def parse_transfer_status(text: str) -> Mapping[str, Any]:
    """Empty where there is none. Without a unit that runs, an unfinished one has died. One that was
    stopped though nobody canceled it, or that no systemd knows of, went down with its host."""
    line, _, rest = text.partition("\n")
    unit, _, mark = rest.partition("\n")
    try:
        status = json.loads(line)
    except ValueError:
        status = None
    if not isinstance(status, dict):
        return {}
    is_over = status.get("phase") in ("done", "failed")
    is_stopped = (status.get("error") or {}).get("kind") == "stopped"
    is_gone = not unit.strip() and not is_over
    if (is_stopped and mark.strip() != TRANSFER_CANCELED) or is_gone:
        message = "the transfer was stopped, as by a restart of the host"
        return {**status, "phase": "failed", "error": {"kind": DOWN, "message": message}}
    if is_over or unit.strip() in ("active", "activating", "reloading", "deactivating"):
        return status
    died = {"kind": "died", "message": "the transfer ended without a result", "exit_code": 17}
    return {**status, "phase": "failed", "error": died}


def has_folder(path: str) -> list[str]:
    return ["test", "-d", path]


def replace_secret(path: str) -> list[str]:
    """Replaces a file by standard input, at once and for root's eyes."""
    put = 'umask 077; cat >"$1.new" && mv -f "$1.new" "$1"'
    return ["sh", "-c", put, "sh", path]


# Unpacks the archive on standard input, runs the agent in its folder and leaves nothing.
_AGENT = """\
dir=$(mktemp -d /run/qwen-deploy-agent.XXXXXX) && tar -xC "$dir" && cd "$dir" || exit
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' HUP INT TERM
python3 agent.pyz "$@"
"""


def agent(arguments: Sequence[str]) -> list[str]:
    """Expects a tar archive with agent.pyz, and with what else it is to find, on standard input."""
    return ["sh", "-c", _AGENT, "sh", *arguments]


# One line a place: yes where a connection can be opened.
_REACH = """\
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def look(place):
    try:
        socket.create_connection(place, 3).close()
    except OSError:
        return "no"
    return "yes"
places = list(zip(sys.argv[1::2], map(int, sys.argv[2::2])))
print(*ThreadPoolExecutor(len(places)).map(look, places), sep="\\n")
"""


def reach(places: Sequence[tuple[str, int]]) -> list[str]:
    words = [word for address, port in places for word in (address, str(port))]
    return ["python3", "-I", "-c", _REACH, *words]


def parse_reach(text: str) -> tuple[bool, ...]:
    return tuple(line == "yes" for line in text.splitlines())


def cancel_transfer() -> list[str]:
    """Prints what became of it, which is known only when it has ended. The status stays, so that it
    can be looked at; one that is done and only gives to others ends too."""
    stop = (
        f'{_IS_DONE}systemctl is-active --quiet "$1" || {{ echo "nothing to cancel"; exit 0; }}; '
        ': >"$3"; systemctl stop "$1" || exit; '
        'is_done "$2" && echo "nothing to cancel" || echo canceled'
    )
    mark = f"{TRANSFER_DIR}/{TRANSFER_CANCELED}"
    return ["sh", "-c", stop, "sh", TRANSFER_UNIT, TRANSFER_STATUS, mark]


def stop_transfer() -> list[str]:
    forget = 'systemctl stop "$1" 2>/dev/null; rm -rf "$2"'
    return ["sh", "-c", forget, "sh", TRANSFER_UNIT, TRANSFER_DIR]


def forget_runs() -> list[str]:
    """Removes what Ansible leaves in the login user's home (ansible.cfg, remote_tmp)."""
    return ["sh", "-c", 'rm -rf "$HOME/.qwen-deploy"']


def remove_lock() -> list[str]:
    return ["rm", "-f", "/run/qwen-deploy.lock"]
