"""One booted system: an overlay over the base tree, run by systemd-nspawn.

Its mounts live in a mount namespace of their own and end with it, however it ends. Knows neither
SSH nor what a test wants.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.lab.names import link
from tests.lab.network import has_link
from tests.lab.shell import LabError, run, wait_until

CGROUP_TREES = tuple(Path("/sys/fs/cgroup", name) for name in ("", "unified", "systemd"))

# A file system in a file: emptying it is deleting one file, where a virtual environment is 30,000.
# No journal and no barriers: the machine's kernel outlives the host and unmounts it in order.
MAKE_FILE_SYSTEM = ("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard")
REBOOT_STATUS = 133  # of systemd-nspawn --keep-unit, which leaves starting again to its caller

# A cgroup of its own, or two hosts would manage one another's processes as theirs.
BOOT = f"""
name=$1 lower=$2 folder=$3; shift 3
start() {{
    for tree in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
        if [ -e "$tree/cgroup.procs" ]; then
            mkdir -p "$tree/$name"
            sh -c 'echo $PPID' > "$tree/$name/cgroup.procs"
        fi
    done
    exec systemd-nspawn --directory="$folder/root" --boot --quiet --register=no --keep-unit \\
        --settings=no --resolv-conf=off --timezone=off --link-journal=no "$@"
}}
mkdir -p "$folder/disk" "$folder/root" /run/systemd/nspawn
mount -o loop,barrier=0 "$folder/disk.img" "$folder/disk"
layers="lowerdir=$lower,upperdir=$folder/disk/upper,workdir=$folder/disk/work"
mount -t overlay -o "$layers" overlay "$folder/root"
mount -t tmpfs tmpfs /run/systemd/nspawn
status={REBOOT_STATUS}
while [ $status = {REBOOT_STATUS} ]; do
    status=0
    (start "$@") || status=$?
done
"""


@dataclass(frozen=True, slots=True)
class Container:
    name: str
    tree: Path
    folder: Path
    bridge: str
    read_only: tuple[Path, ...]

    @property
    def console_path(self) -> Path:
        return self.folder / "console.log"

    def format_disk(self, files: Mapping[str, tuple[str, int]]) -> None:
        """A disk that is empty but for these files: path -> text and mode."""
        self.folder.mkdir(parents=True)
        image, content = self.folder / "disk.img", self.folder / "content"
        for name in ("upper", "work"):
            (content / name).mkdir(mode=0o755, parents=True)
        for path, (text, mode) in files.items():
            self._write(content / "upper", Path(path.lstrip("/")), text, mode)
        with image.open("wb") as file:
            file.truncate(shutil.disk_usage(self.folder).free)
        run(*MAKE_FILE_SYSTEM, "-d", content, image)
        shutil.rmtree(content)

    def _write(self, top: Path, path: Path, text: str, mode: int) -> None:
        """A folder on an overlay hides the mode of the one below it, so that it takes it over."""
        for folder in reversed(path.parents[:-1]):
            if not (top / folder).exists():
                (top / folder).mkdir(mode=0o700)
                if (self.tree / folder).exists():
                    shutil.copystat(self.tree / folder, top / folder)
        (top / path).write_text(text)
        (top / path).chmod(mode)

    def start(self) -> subprocess.Popen[bytes]:
        remove_cgroups(self.name)
        binds = [f"--bind-ro={folder}" for folder in self.read_only]
        cable = [f"--network-bridge={self.bridge}", f"--machine={self.name}"]
        script = ["unshare", "--mount", "sh", "-ec", BOOT, "sh"]
        with self.console_path.open("ab") as console:
            return subprocess.Popen(
                [*script, self.name, self.tree, self.folder, *cable, *binds],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def cut_power(self, supervisor: subprocess.Popen[bytes]) -> None:
        """SIGKILL to the host's PID 1; its supervisor takes the cable away, unmounts and ends."""
        if supervisor.poll() is None:
            os.kill(find_leader(supervisor.pid) or supervisor.pid, signal.SIGKILL)
        wait_until(lambda: not has_link(link(self.name)), 10, f"{self.name}: cable gone")


def find_leader(supervisor_pid: int) -> int | None:
    """PID 1 of the host, as the machine numbers it; another one after every boot."""
    for pid in _children(supervisor_pid):
        if _pid_inside(pid) == 1:
            return pid
        if (leader := find_leader(pid)) is not None:
            return leader
    return None


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _pid_inside(pid: int) -> int | None:
    """The number that a process in the namespace below ours has there."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    numbers = re.search(r"^NSpid:((?:\s+\d+)+)$", status, re.MULTILINE)
    words = numbers[1].split() if numbers else []
    return int(words[-1]) if len(words) > 1 else None


def remove_cgroups(name: str) -> None:
    """The processes of a host that was just killed may leave their cgroup a moment later."""
    roots = [tree / name for tree in CGROUP_TREES if (tree / name).is_dir()]
    wait_until(lambda: all(map(_is_removed, roots)), 10, f"cgroups of {name} empty")


def _is_removed(root: Path) -> bool:
    try:
        for folder, _, _ in os.walk(root, topdown=False):
            os.rmdir(folder)
    except OSError:
        return False
    return True


def log_tail(path: Path, lines: int = 15) -> str:
    text = path.read_text(errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-lines:])


def explain(container: Container) -> LabError:
    return LabError(f"{container.name} did not boot:\n{log_tail(container.console_path)}")
