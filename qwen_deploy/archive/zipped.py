"""A member that is compressed by itself, for serving. Does not know what it is for."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from qwen_weights.archives import Member, info_of

from qwen_deploy.content import check_unchanged
from qwen_deploy.hashes import Stamp


@dataclass(frozen=True, slots=True)
class ZipContent:
    """To begin later, what comes before is skipped."""

    path: Path
    stamp: Stamp
    member: Member

    @property
    def size(self) -> int:
        return self.member.size

    def open(self, offset: int) -> BinaryIO:
        check_unchanged(self.path, self.stamp)
        with zipfile.ZipFile(self.path) as archive:
            info = info_of(self.path, archive, self.member)
            reader = archive.open(info)  # which keeps the file open by itself
        reader.seek(offset)
        return cast(BinaryIO, reader)
