"""Folders and files that a power loss leaves either as they were or as they should be, and one
content under several names. Knows neither models nor manifests."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_COPY_BYTES = 1 << 20
_OTHERS_MAY_READ = 0o044
# What a file system answers that can do no such thing, or not with these two files.
_CANNOT = (
    *(errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ENOSYS),
    *(errno.EMLINK, errno.EACCES),
)


def free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def make_dirs(path: Path) -> None:
    """Readable by everyone whatever the umask: the service runs as another user."""
    if path.is_dir():
        return
    make_dirs(path.parent)
    path.mkdir(exist_ok=True)
    path.chmod(0o755)


def write_durably(path: Path, text: str) -> None:
    beside = path.with_name(unfinished(path.name))
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.chmod(0o444)
    os.replace(beside, path)


def unfinished(name: str) -> str:
    """What a kill in the middle of writing a file durably leaves beside it."""
    return f".{name}.new"


def sync_dir(path: Path) -> None:
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share_content(source: Path, target: Path) -> bool:
    """Gives the content a second name without a second copy; False where only copying is left.

    A reflink is a file of its own. A hard link is the same one, with its owner and mode."""
    target.unlink(missing_ok=True)
    if _reflink(source, target):
        return True
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def let_others_read(path: Path) -> None:
    """All that may change about a file that is somebody else's too: the service must read it."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS_MAY_READ != _OTHERS_MAY_READ:
        path.chmod(mode | _OTHERS_MAY_READ)


def _reflink(source: Path, target: Path) -> bool:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(source, "rb", buffering=0) as file:
            is_done = reflink_into(file.fileno(), descriptor)
    except BaseException:
        target.unlink()
        raise
    finally:
        os.close(descriptor)
    if is_done:
        target.chmod(0o444)
    else:
        target.unlink()
    return is_done


def reflink_into(source: int, target: int) -> bool:
    """The whole of one open file as another's content, block by block shared."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def copy_range(
    source: int, target: int, first: int, end: int, keep_going: Callable[[], None]
) -> None:
    """Bytes of one open file to the same place in another; ends early where the source does."""
    while first < end:
        keep_going()
        content = os.pread(source, min(_COPY_BYTES, end - first), first)
        if not content:
            return
        write_at(target, content, first)
        first += len(content)


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    written = 0
    view = memoryview(content)
    while written < len(view):
        written += os.pwrite(descriptor, view[written:], offset + written)


def is_file_of_size(path: Path, size: int) -> bool:
    """A regular file itself: a link could lead anywhere tomorrow."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size
