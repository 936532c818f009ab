"""An operator's home folder: the SSH configuration that a program run by a test finds.

Does not know the hosts, only their keys' lines.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.lab.names import MARK_VARIABLE
from tests.lab.shell import LabError

# An operator of the lab has no agent and no settings of whoever runs the tests.
REMOVED_VARIABLES = ("SSH_AUTH_SOCK", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")
# No test asks a hub of the world. The discard service: nobody listens there.
HUBS = ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT")
NOWHERE = "http://127.0.0.1:9"


@dataclass(frozen=True, slots=True)
class Operator:
    home: Path
    lab_digest: str

    @property
    def programs(self) -> Path:
        return self.home / "bin"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: text for name, text in os.environ.items() if name not in REMOVED_VARIABLES}
        path = f"{self.programs}:{os.environ['PATH']}"
        own = {"HOME": str(self.home), "PATH": path, MARK_VARIABLE: self.lab_digest}
        return kept | own | dict.fromkeys(HUBS, NOWHERE)

    def settle(self, *, known_hosts: str, key: Path | None) -> None:
        """Make the home.

        OpenSSH takes the home from the user database and not from HOME, so that programs which
        read this home's configuration come first in PATH.
        """
        folder = self.home / ".ssh"
        folder.mkdir(parents=True, mode=0o700)
        (folder / "known_hosts").write_text(known_hosts)
        identity = f"    IdentityFile {key}\n" if key else ""
        options = f"    IdentitiesOnly yes\n    UserKnownHostsFile {folder}/known_hosts\n"
        (folder / "config").write_text(f"Host *\n{identity}{options}")
        self.programs.mkdir()
        for program in ("ssh", "scp", "sftp"):
            if (real := shutil.which(program)) is None:
                raise LabError(f"the lab needs {program}, which is not in PATH")
            script = self.programs / program
            script.write_text(f'#!/bin/sh\nexec {real} -F "{folder}/config" "$@"\n')
            script.chmod(0o755)
