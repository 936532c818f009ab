"""`python -m tests.lab [COUNT]`: hosts for a person to play with, until Ctrl-C."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable

from tests.lab import Lab, LabError
from tests.lab.lab import remove


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1, help="how many hosts (1)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    parser.add_argument("--remove", action="store_true", help="remove a lab that was kept")
    arguments = parser.parse_args()
    # However we are asked to end, we wait until everything is gone.
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        if arguments.remove:
            remove()
        else:
            _show(arguments.count, _as_json if arguments.json else _as_text)
    except KeyboardInterrupt:
        print("lab: removed", file=sys.stderr)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _show(count: int, describe: Callable[[Lab], str]) -> None:
    with Lab(count) as lab:
        print(describe(lab), flush=True)
        threading.Event().wait()


def _as_json(lab: Lab) -> str:
    return json.dumps(
        {
            "hosts": [{"name": host.name, "address": host.address} for host in lab.hosts],
            "ssh_key": str(lab.ssh_key),
            "known_hosts": str(lab.known_hosts),
            "directory": str(lab.directory),
            "home": lab.environment["HOME"],
        }
    )


def _as_text(lab: Lab) -> str:
    home = lab.environment["HOME"]
    hosts = " ".join(f"--host root@{host.address}" for host in lab.hosts)
    lines = (
        *(f"{host.name}  {host.address}" for host in lab.hosts),
        "",
        "Log in:",
        *(f"    {lab.login_command(host)}" for host in lab.hosts),
        "Deploy, with a home folder that knows these hosts:",
        f'    HOME="{home}" PATH="{home}/bin:$PATH" qwen-deploy up {hosts}',
        "Remove the lab: Ctrl-C.",
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
