"""Prints one JSON object with everything the controller wants to know of this host.

Runs on the host as root with one argument, a JSON object: `paths` whose SHA-256 or link target
is wanted, `trees` to list with sizes, `disks` to measure, `port` whose owner is wanted, `python` to
ask for its version, `units`, `packages`, `model` whose manifests are wanted, and `probe`: "none",
"ready" or "completion".
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

ROOT = "/opt/qwen-deploy"
STATE = "/var/lib/qwen-deploy"
ETC = "/etc/qwen-deploy"
UNIT_PROPERTIES = (
    "ActiveState,SubState,Result,StatusText,MainPID,NRestarts,ExecMainStatus,UnitFileState,"
    "ActiveEnterTimestampMonotonic,FragmentPath,NeedDaemonReload"
)


def read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def digest(path: str) -> str | None:
    """The SHA-256 of a file, `-> target` of a link, `directory`, or None where there is nothing.

    The marker of an environment counts for nothing where packages are missing from it.
    """
    if os.path.basename(path) == ".complete" and not is_whole(os.path.dirname(path)):
        return None
    if os.path.islink(path):
        return "-> " + os.readlink(path)
    if os.path.isdir(path):
        return "directory"
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def is_whole(venv: str) -> bool:
    """See playbooks/library/qwen_venv.py, which writes `.names`."""
    names = sorted(map(os.path.basename, glob.glob(venv + "/lib/*/site-packages/*")))
    # Whoever runs the interpreter as root leaves `__pycache__` behind.
    return read(venv + "/.names") == "\n".join(name for name in names if name != "__pycache__")


def tree(directory: str) -> dict[str, int]:
    """Sizes by relative path, following the one link that `directory` itself may be."""
    sizes = {}
    for parent, _, names in os.walk(os.path.realpath(directory)):
        for name in names:
            path = os.path.join(parent, name)
            try:
                sizes[os.path.relpath(path, os.path.realpath(directory))] = os.stat(path).st_size
            except OSError:
                continue
    return sizes


def disk(path: str) -> dict[str, Any]:
    """Where `path` lies, or would lie: its file system's mount point and free bytes."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    usage = os.statvfs(path)
    mount = os.path.realpath(path)
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    return {
        "mount": mount,
        "free_bytes": usage.f_bavail * usage.f_frsize,
        "total_bytes": usage.f_blocks * usage.f_frsize,
        "free_inodes": usage.f_favail if usage.f_files else None,
    }


def manifests(model: str) -> list[dict[str, Any]]:
    """What lies here of a model, by revision: its manifest.json, without its folder's name."""
    found = []
    for path in sorted(glob.glob("%s/models/%s/*/manifest.json" % (STATE, glob.escape(model)))):
        try:
            found.append(json.loads(read(path) or ""))
        except ValueError:
            continue
    return found


def ssh_address() -> str:
    """Where this host was reached; sshd(8): the client's address and port, then ours."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return words[2] if len(words) == 4 else ""


def partials() -> dict[str, int]:
    """Bytes that an unfinished transfer left here, by the SHA-256 they will have."""
    paths = glob.glob(STATE + "/partial/*.part")
    return {os.path.basename(path)[: -len(".part")]: os.stat(path).st_size for path in paths}


def os_release() -> dict[str, str]:
    text = read("/etc/os-release") or ""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key: value.strip().strip('"') for key, value in pairs}


def output(argv: list[str], expect: tuple[int, ...] = (0,)) -> str | None:
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode in expect else None


def is_program(name: str) -> bool:
    places = os.environ.get("PATH", os.defpath).split(":")
    return any(os.access(os.path.join(place, name), os.X_OK) for place in places)


def units(names: list[str]) -> dict[str, dict[str, str]]:
    """Properties by unit; systemctl parts the units by an empty line."""
    text = output(["systemctl", "show", *names, "-p", UNIT_PROPERTIES]) or ""
    shown = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in text.split("\n\n")
    ]
    return dict(zip(names, [*shown, *({} for _ in names)]))


def listening_inodes(port: int) -> set[str]:
    """Socket inodes that listen on `port`; /proc/net/tcp is described in proc(5)."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (read(table) or "").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                inodes.add("socket:[" + fields[9] + "]")
    return inodes


def open_files(pid: str) -> set[str]:
    try:
        return {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    except OSError:
        return set()


def port_owner(port: int) -> dict[str, Any] | None:
    """Who listens on `port`: pid, command and unit of the process, or None."""
    inodes = listening_inodes(port)
    if not inodes:
        return None
    for pid in sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int):
        try:
            held = {
                os.readlink("/proc/%s/fd/%s" % (pid, fd)) for fd in os.listdir("/proc/%s/fd" % pid)
            }
        except OSError:
            continue
        # PID 1 holds the sockets of socket units; the service behind them holds them too.
        if held & inodes:
            cgroup = (read("/proc/%s/cgroup" % pid) or "").strip().rsplit("/", 1)[-1]
            return {
                "pid": int(pid),
                "command": (read("/proc/%s/comm" % pid) or "").strip(),
                "unit": cgroup,
            }
    return {"pid": 0, "command": "unknown", "unit": ""}


def gpus() -> list[dict[str, str]]:
    fields = "uuid,name,memory.total,memory.used,driver_version,compute_cap"
    text = output(["nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader,nounits"])
    rows = [[cell.strip() for cell in line.split(",")] for line in (text or "").splitlines()]
    parts = mig_instances() if rows else {}
    return [
        dict(zip(fields.split(","), row), mig=",".join(parts.get(row[0], [])))
        for row in rows
        if len(row) == 6
    ]


def mig_instances() -> dict[str, list[str]]:
    """UUIDs of the MIG instances by that of their GPU, in which only `nvidia-smi -L` lists them."""
    found: dict[str, list[str]] = {}
    gpu = ""
    for line in (output(["nvidia-smi", "-L"]) or "").splitlines():
        uuid = line.partition("(UUID: ")[2].rstrip(")")
        if line.startswith("GPU"):
            gpu = uuid
        elif uuid:
            found.setdefault(gpu, []).append(uuid)
    return found


def request(path: str, body: Any = None, key: str = "", timeout: float = 10.0) -> tuple[int, Any]:
    """Status and decoded body of one request to the service; status 0 where nobody answered.

    Over a bare socket: the library's client would take half of the time of all facts to import.
    """
    data = json.dumps(body).encode() if body is not None else b""
    lines = [
        "%s %s HTTP/1.0" % ("POST" if data else "GET", path),
        "Host: localhost",
        "Content-Type: application/json",
        "Content-Length: %d" % len(data),
        *(["Authorization: Bearer " + key] if key else []),
    ]
    try:
        with socket.create_connection(listening(), timeout) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, content = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json_or_text(content)
    except OSError as error:
        return 0, str(error)
    except (ValueError, IndexError):
        return 0, "no answer in HTTP"


def json_or_text(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")[:500]


def completion(model: str | None) -> dict[str, Any]:
    """One short, greedy answer from the service, asked as any client would."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "你好"}],
        "max_tokens": 4,
        "temperature": 0,
    }
    started = time.monotonic()
    key = (read(ETC + "/operator.key") or "").strip()
    status, answer = request("/v1/chat/completions", body, key, timeout=60.0)
    spoke = status == 200 and isinstance(answer, dict) and bool(answer.get("choices"))
    return {
        "ok": spoke,
        "status": status,
        "error": None if spoke else answer,
        "seconds": time.monotonic() - started,
    }


def listening() -> tuple[str, int]:
    """Where the current release listens, as the host itself reaches it."""
    try:
        listen = json.loads(read(ROOT + "/current/release.json") or "{}").get("listen")
    except ValueError:
        listen = None
    address, _, port = (listen or "127.0.0.1:8000").rpartition(":")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address), int(port)


def service(probe: str) -> dict[str, Any]:
    """What the service says of itself: `/ready`, and a completion where one was asked for."""
    status, ready = request("/ready")
    answers = {"status": status, "ready": ready}
    if status == 200 and isinstance(ready, dict) and probe == "completion":
        answers["completion"] = completion(ready.get("model"))
    return answers


def python_version(program: str) -> list[int] | None:
    if program == "python3":
        return list(sys.version_info[:2])
    text = output([program, "-c", "import sys; print(*sys.version_info[:2])"])
    return [int(part) for part in text.split()] if text else None


def keys() -> list[list[str]]:
    """The words of the keys file's lines; the hashes in them say nothing about the keys."""
    lines = (read(ETC + "/keys") or "").splitlines()
    return [line.split() for line in lines if len(line.split()) >= 2 and line[0] != "#"]


def process(pid: int) -> dict[str, float] | None:
    """Resident bytes and age of a process."""
    text = read(f"/proc/{pid}/status")
    stat = read(f"/proc/{pid}/stat")
    if not pid or text is None or stat is None:
        return None
    resident = [line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")]
    started = int(stat.rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    uptime = float((read("/proc/uptime") or "0").split()[0])
    return {
        "resident_bytes": int(resident[0]) * 1024 if resident else 0,
        "uptime_seconds": uptime - started,
    }


def releases() -> list[dict[str, Any]]:
    found = []
    directory = ROOT + "/releases"
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        path = os.path.join(directory, name)
        try:
            release = json.loads(read(path + "/release.json") or "")
        except ValueError:
            continue
        venv = os.path.basename(digest(path + "/venv") or "")
        found.append(dict(release, id=name, made_at=os.stat(path).st_ctime, venv=venv))
    return found


def audit() -> list[dict[str, Any]]:
    """The audit log's lines that parse; a power loss may have torn the last one."""
    entries = []
    for line in (read(STATE + "/audit.log") or "").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def packages(names: list[str]) -> dict[str, bool]:
    if not names:
        return {}
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n", *names]
    text = output(query, expect=(0, 1)) or ""  # 1: one of them is unknown
    installed = {line.split()[0] for line in text.splitlines() if line.split()[1:2] == ["ii"]}
    return {name: name in installed for name in names}


def current() -> str | None:
    target = digest(ROOT + "/current")
    return os.path.basename(target) if target and target.startswith("-> ") else None


def facts(arguments: dict[str, Any]) -> dict[str, Any]:
    shown = units(arguments["units"])
    main_pid = int(shown.get("qwen.service", {}).get("MainPID") or 0)
    return {
        "sudo": "SUDO_USER" in os.environ,
        "address": ssh_address(),
        "machine": os.uname().machine,
        "os": os_release(),
        "has_systemd": os.path.isdir("/run/systemd/system"),
        "python": list(sys.version_info[:3]),
        "runtime_python": python_version(arguments["python"]),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "time": time.time(),
        "boot_id": (read("/proc/sys/kernel/random/boot_id") or "").strip(),
        "disks": {path: disk(path) for path in arguments["disks"]},
        "packages": packages(arguments["packages"]),
        "has_apt": is_program("apt-get"),
        "gpus": gpus() if is_program("nvidia-smi") else [],
        "port_owner": port_owner(arguments["port"]) if arguments["port"] else None,
        "current": current(),
        "releases": releases(),
        "audit": audit(),
        "digests": {path: digest(path) for path in arguments["paths"]},
        "trees": {path: tree(path) for path in arguments["trees"]},
        "models": manifests(arguments["model"]) if arguments["model"] else [],
        "partials": partials() if arguments["model"] else {},
        "keys": keys(),
        "units": shown,
        "process": process(main_pid),
        # A request to a socket without its service would start the service.
        "service": service(arguments["probe"])
        if main_pid and arguments["probe"] != "none"
        else None,
    }


print(json.dumps(facts(json.loads(sys.argv[1]))))
