"""The base tree: a bare Debian system on disk, made once per recipe and shared by all hosts.

Knows debootstrap and apt. Does not know how many hosts stand on it, nor how they boot.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab.names import MARK_VARIABLE, Names, cache_dir
from tests.lab.shell import locked, run
from tests.lab.surroundings import Surroundings

# Change it when a step below changes, so that older trees are not taken.
RECIPE = 1
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "python3"),
    *("ca-certificates", "iproute2", "procps", "curl"),
)
# Left where apt looks for downloads: a host installs them for real, without waiting for a mirror.
DOWNLOADED = ("git", "git-lfs")
# Their random start would hold apt's lock in the middle of a test.
MASKED_UNITS = ("apt-daily.timer", "apt-daily-upgrade.timer")
UNUSED_SECONDS = 14 * 24 * 3600


def load(surroundings: Surroundings, names: Names) -> Path:
    """The finished tree, made first where it is absent: a minute and a half."""
    trees = cache_dir() / "trees"
    tree = trees / _key(surroundings)
    trees.mkdir(parents=True, exist_ok=True)
    cache_dir().chmod(0o700)  # apt's credentials are part of a tree
    with locked(cache_dir() / "trees.lock") as lock:
        if not tree.exists():
            _remove_stale(trees)
            _make(surroundings, tree, _Maker(names, lock))
        os.utime(tree)
    return tree


@dataclass(frozen=True, slots=True)
class _Maker:
    """Runs programs that end, with all that they started and mounted, when a sweep ends them."""

    names: Names
    lock: int

    def run(self, *argv: str | Path) -> None:
        own = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        mark = {MARK_VARIABLE: self.names.digest, "DEBIAN_FRONTEND": "noninteractive"}
        run(*own, *argv, timeout=900, environment=mark, pass_fds=(self.lock,))

    def chroot(self, tree: Path, script: str) -> None:
        mounts = 'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev"'
        self.run("sh", "-ec", f'{mounts} && exec chroot "$0" sh -ec "$1"', tree, script)


def _key(surroundings: Surroundings) -> str:
    digest = hashlib.sha256()
    recipe = (RECIPE, PACKAGES, DOWNLOADED, MASKED_UNITS, surroundings.suite, surroundings.mirror)
    digest.update(json.dumps(recipe).encode())
    for path, content in surroundings.files:
        digest.update(f"\n{path} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _remove_stale(trees: Path) -> None:
    for tree in trees.iterdir():
        is_unused = time.time() - tree.stat().st_mtime > UNUSED_SECONDS
        if tree.name.startswith("making-") or is_unused:
            shutil.rmtree(tree)


def _make(surroundings: Surroundings, tree: Path, maker: _Maker) -> None:
    print(f"lab: making the base tree {tree} (once, about 100 s)", file=sys.stderr, flush=True)
    making = tree.with_name(f"making-{tree.name}")
    packages = f"--include={','.join(PACKAGES)}"
    source = (surroundings.suite, making, surroundings.mirror)
    maker.run("debootstrap", "--variant=minbase", packages, *source)
    _configure(making, surroundings)
    maker.chroot(making, "update-ca-certificates && apt-get clean && apt-get update")
    maker.chroot(making, f"apt-get install --yes --download-only {' '.join(DOWNLOADED)}")
    making.rename(tree)


def _configure(tree: Path, surroundings: Surroundings) -> None:
    (tree / "etc/apt/sources.list").unlink(missing_ok=True)
    # Names must resolve while the tree is made; a host gets a file of its own.
    shutil.copyfile("/etc/resolv.conf", tree / "etc/resolv.conf")
    for path, content in surroundings.files:
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    identity = tree / "var/lib/dbus/machine-id"
    identity.unlink(missing_ok=True)
    identity.symlink_to("/etc/machine-id")
    run("systemctl", f"--root={tree}", "enable", "systemd-networkd", "ssh")
    run("systemctl", f"--root={tree}", "mask", *MASKED_UNITS)
