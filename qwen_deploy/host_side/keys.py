"""Reads the host's API keys, adds one or removes some, at once and durably; prints JSON.

The lock that keeps others away is held by whoever starts this.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from typing import Any

ROOT = "/opt/qwen-deploy"
ETC = "/etc/qwen-deploy"
PATH = ETC + "/keys"
COUNTERS = {
    "qwen_requests_total": "requests",
    "qwen_prompt_tokens_total": "prompt_tokens",
    "qwen_completion_tokens_total": "completion_tokens",
}


def lines() -> list[str] | None:
    try:
        with open(PATH, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return None


def name_of(line: str) -> str:
    return "" if line.startswith("#") else (line.split() or [""])[0]


def write(kept: list[str]) -> None:
    """Whoever reads meanwhile finds the old file or the new one."""
    before = os.stat(PATH)
    temporary = PATH + ".new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchown(descriptor, before.st_uid, before.st_gid)
        os.fchmod(descriptor, before.st_mode & 0o777)
        file.write("".join(line + "\n" for line in kept))
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, PATH)
    directory = os.open(ETC, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def change(order: dict[str, Any], there: list[str]) -> dict[str, Any]:
    names = {name_of(line) for line in there}
    if order["action"] == "create":
        if order["name"] in names:
            return {"outcome": "exists"}
        write([*there, order["line"]])
        return {"outcome": "created"}
    revoked = [name for name in order["names"] if name in names]
    if revoked:
        write([line for line in there if name_of(line) not in revoked])
    return {"outcome": "revoked", "revoked": revoked}


def listening() -> tuple[str, int]:
    with open(ROOT + "/current/release.json", encoding="utf-8") as file:
        address, _, port = json.load(file)["listen"].rpartition(":")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address), int(port)


def scrape() -> str:
    """What the service counts, or nothing where it does not answer."""
    try:
        with open(ETC + "/operator.key", encoding="utf-8") as file:
            key = file.read().strip()
        head = "GET /metrics HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n" % key
        with socket.create_connection(listening(), 5) as connection:
            connection.sendall(head.encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    except (OSError, ValueError, KeyError):
        return ""
    first, _, rest = answer.decode("utf-8", "replace").partition("\r\n")
    return rest if " 200 " in first + " " else ""


def usage() -> dict[str, dict[str, int]]:
    """Counters by key since the service started."""
    found: dict[str, dict[str, int]] = {}
    for name, labels, value in re.findall(r"^(\w+)\{(.*)\} (\S+)$", scrape(), re.MULTILINE):
        key = re.search(r'\bkey="([^"]*)"', labels)
        if name in COUNTERS and key:
            counts = found.setdefault(key[1], dict.fromkeys(COUNTERS.values(), 0))
            counts[COUNTERS[name]] += int(float(value))
    return found


def main() -> None:
    order = json.loads(sys.argv[1])
    there = lines()
    if there is None:
        told: dict[str, Any] = {"outcome": "none"}
    elif order["action"] == "list":
        listed = [line.split() for line in there if name_of(line) and len(line.split()) > 1]
        told = {"outcome": "listed", "keys": listed, "usage": usage() if order["usage"] else {}}
    else:
        told = change(order, there)
    print(json.dumps(told))


main()
