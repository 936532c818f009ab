"""What can end a transfer, each with its kind and exit code. Knows neither files nor sockets.

  0  done, or there was nothing to do
  1  internal   a fault of this program
  2  manifest   the manifest or the command line says something impossible
 10  auth       the source refused the token
 11  missing    the source has no such file
 12  disk       not enough room, before or during the transfer
 13  checksum   the bytes are not those of the manifest
 14  changed    the source, or the host, holds another version under the same name
 15  network    no byte came for as long as the transfer may wait
 16  host       the host refused a file operation
 17  died       the transfer ended without a result (`wait`)
 18  deadline   the transfer did not end in time (`wait`)
 19  model      the folder or archive holds no model that could be deployed (`index`)
 20  tls        the source cannot be trusted: its certificate, or a step from https to http
130  stopped    a signal ended the transfer; the next one continues
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


class WeightsError(Exception):
    kind = "internal"
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class BadManifest(WeightsError):
    kind = "manifest"
    exit_code = 2


class TokenRefused(WeightsError):
    kind = "auth"
    exit_code = 10


class Missing(WeightsError):
    kind = "missing"
    exit_code = 11


class DiskFull(WeightsError):
    kind = "disk"
    exit_code = 12


class ChecksumMismatch(WeightsError):
    kind = "checksum"
    exit_code = 13


class Changed(WeightsError):
    kind = "changed"
    exit_code = 14


class SourceGone(WeightsError):
    kind = "network"
    exit_code = 15


class HostRefused(WeightsError):
    kind = "host"
    exit_code = 16


class TransferDied(WeightsError):
    kind = "died"
    exit_code = 17


class DeadlinePassed(WeightsError):
    kind = "deadline"
    exit_code = 18


class NotAModel(WeightsError):
    kind = "model"
    exit_code = 19


class Untrusted(WeightsError):
    kind = "tls"
    exit_code = 20


class Stopped(WeightsError):
    kind = "stopped"
    exit_code = 130


class WrongPiece(Exception):
    """Other bytes came than those of a better witness, from `first_byte` on. `blames`: whoever
    sent the last of them is known to be the one."""

    def __init__(self, first_byte: int, message: str, *, blames: bool = True) -> None:
        super().__init__(message)
        self.first_byte = first_byte
        self.blames = blames


def of_host(error: OSError, root: Path, reached: str) -> WeightsError:
    """The typed form of a file operation that the host refused."""
    subject = error.filename or root
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk of {root} is full: {os.strerror(error.errno)}; {reached}")
    return HostRefused(f"{subject}: {error.strerror or error}; {reached}")


def in_units(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
