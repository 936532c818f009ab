#!/usr/bin/python
"""Builds a virtual environment from a hash-locked requirements file with uv, whole or not at all.

The marker `.complete` is written last, and `.names` lists what was installed. A build that a power
loss cut short is begun anew with an empty cache, because files that never reached the disk would
look installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import shutil
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: qwen_venv
short_description: Build a virtual environment from a lock file with uv
options:
  path: {description: Directory of the virtual environment., type: path, required: true}
  lock: {description: Requirements file with hashes., type: path, required: true}
  uv: {description: The uv program., type: path, required: true}
  python: {description: Interpreter to build from., type: str, required: true}
  cache: {description: Directory of uv's cache., type: path, required: true}
  index_url: {description: Package index; without one no network is asked., type: str}
  extra_index_urls: {description: Further indexes., type: list, elements: str, default: []}
  find_links: {description: Folders or pages with wheels., type: list, elements: str, default: []}
  ca_file: {description: CA bundle for the indexes., type: path}
"""


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def names(path: str) -> str:
    """What lies in site-packages, by which a removed package is noticed."""
    there = sorted(map(os.path.basename, glob.glob(path + "/lib/*/site-packages/*")))
    return "\n".join(name for name in there if name != "__pycache__")


def environment(parameters: dict) -> dict:
    """uv asks only the indexes it is given, and trusts what the host or the given bundle trusts."""
    own = {
        "UV_CACHE_DIR": parameters["cache"],
        "UV_NO_CONFIG": "1",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_SYSTEM_CERTS": "1",
        "UV_HTTP_TIMEOUT": "120",
    }
    if parameters["ca_file"]:
        own["SSL_CERT_FILE"] = parameters["ca_file"]
    return {**os.environ, **own}


def sync_command(parameters: dict) -> list[str]:
    argv = [parameters["uv"], "pip", "sync", "--require-hashes", parameters["lock"]]
    argv += ["--python", os.path.join(parameters["path"], "bin", "python")]
    for place in parameters["find_links"]:
        argv += ["--find-links", place]
    if not parameters["index_url"]:
        return [*argv, "--no-index", "--offline"]
    argv += ["--index-url", parameters["index_url"], "--index-strategy", "unsafe-best-match"]
    for url in parameters["extra_index_urls"]:
        argv += ["--extra-index-url", url]
    return argv


def run(module: AnsibleModule, argv: list[str], lock: int) -> None:
    # uv holds the lock as well: it may outlive this module, whose operator may be gone.
    done = subprocess.run(
        argv,
        pass_fds=[lock],
        env=environment(module.params),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        module.fail_json(msg="\n".join(lines[-8:]), argv=argv)


def build(module: AnsibleModule, boot_id: str, lock: int) -> None:
    path, cache = module.params["path"], module.params["cache"]
    building = path + ".building"
    if read(building) not in ("", boot_id):
        shutil.rmtree(cache, ignore_errors=True)
    write(building, boot_id)
    uv = module.params["uv"]
    run(module, [uv, "venv", "--clear", "--python", module.params["python"], path], lock)
    run(module, sync_command(module.params), lock)
    os.sync()


def main() -> None:
    module = AnsibleModule(
        {
            "path": {"type": "path", "required": True},
            "lock": {"type": "path", "required": True},
            "uv": {"type": "path", "required": True},
            "python": {"type": "str", "required": True},
            "cache": {"type": "path", "required": True},
            "index_url": {"type": "str"},
            "extra_index_urls": {"type": "list", "elements": "str", "default": []},
            "find_links": {"type": "list", "elements": "str", "default": []},
            "ca_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    if module.check_mode and not os.path.exists(module.params["lock"]):
        module.exit_json(changed=True, seconds=0.0)  # the task before would have copied it
    with open(module.params["lock"], "rb") as file:
        wanted = hashlib.sha256(file.read()).hexdigest()
    marker = os.path.join(path, ".complete")
    started = time.monotonic()
    os.umask(0o022)  # the system user must be able to read it, whatever root's default is
    if read(marker) == wanted and read(path + "/.names") == names(path):
        module.exit_json(changed=False, seconds=0.0)
    if module.check_mode:
        module.exit_json(changed=True, seconds=0.0)
    # A build that outlived its operator ends first, and then often leaves nothing to do.
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read(marker) != wanted or read(path + "/.names") != names(path):
            build(module, read("/proc/sys/kernel/random/boot_id"), lock.fileno())
            write(path + "/.names", names(path))
            write(marker, wanted)
            os.remove(path + ".building")
    # Whoever waited for the lock finds it removed already.
    with contextlib.suppress(FileNotFoundError):
        os.remove(path + ".lock")
    module.exit_json(changed=True, seconds=time.monotonic() - started)


if __name__ == "__main__":
    main()
