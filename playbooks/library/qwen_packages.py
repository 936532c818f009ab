#!/usr/bin/python
"""Installs operating system packages and remembers which ones that added.

The apt module would first install python3-apt on a bare host, and does not say what a package
brought along, which `down --purge` has to know.
"""

from __future__ import annotations

import json
import os
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: qwen_packages
short_description: Install Debian packages and record what that added
options:
  names: {description: Packages that must be there., type: list, elements: str, required: true}
  record: {description: JSON file of every package added so far., type: path, required: true}
"""

ENVIRONMENT = dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8")
WAIT_FOR_LOCK = ["-o", "DPkg::Lock::Timeout=300"]


def installed() -> set[str]:
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n"]
    lines = subprocess.run(query, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()
    return {line.split()[0] for line in lines if line.split()[1:2] == ["ii"]}


def run(module: AnsibleModule, argv: list[str]) -> None:
    done = subprocess.run(
        argv, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        marked = [line for line in lines if line.startswith(("E:", "Err:"))]
        module.fail_json(msg="\n".join((marked or lines)[-5:]), argv=argv)


def remember(path: str, added: set[str]) -> None:
    known = set()
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            known = set(json.load(file))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(sorted(known | added), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def main() -> None:
    module = AnsibleModule(
        {
            "names": {"type": "list", "elements": "str", "required": True},
            "record": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    started = time.monotonic()
    before = installed()
    missing = sorted(set(module.params["names"]) - before)
    if missing and not module.check_mode:
        # A power loss in the middle of an earlier installation leaves packages half configured.
        run(module, ["dpkg", "--configure", "-a"])
        run(module, ["apt-get", "update", "-q", *WAIT_FOR_LOCK])
        install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *WAIT_FOR_LOCK]
        run(module, [*install, *missing])
        remember(module.params["record"], installed() - before)
    module.exit_json(changed=bool(missing), missing=missing, seconds=time.monotonic() - started)


if __name__ == "__main__":
    main()
