"""`python -m tests.hanging_service`: the service with a door in its model. While somebody else
holds the lock on the file that $QWEN_TEST_DOOR names, the inference thread hangs in a forward pass.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DOOR = "QWEN_TEST_DOOR"


@contextmanager
def shut(door: Path) -> Iterator[None]:
    with door.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pass(door: Path) -> None:
    with door.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def main() -> None:
    import torch
    from qwen_service.__main__ import main as serve

    door = Path(os.environ[DOOR])

    def wait(module: torch.nn.Module, arguments: Any) -> None:
        if isinstance(module, torch.nn.Embedding):
            _pass(door)

    torch.nn.modules.module.register_module_forward_pre_hook(wait)
    code = serve()
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    main()
