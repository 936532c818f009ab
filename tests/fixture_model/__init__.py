"""The fixture model: a real, tiny Qwen2 checkpoint that knows `dialogues.py` by heart.

Trained on first use and kept per recipe and library versions. Imports no torch itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

RECIPE = Path(__file__).parent
ROOT = RECIPE.parent.parent


def fixture_model() -> Path:
    """The checkpoint's folder, shared by all tests: never change it, copy it."""
    return _trained() / "whole"


def sharded_model(path: Path) -> Path:
    """A copy of the checkpoint in several shards with an index, for tests that break it."""
    return Path(shutil.copytree(_trained() / "sharded", path))


def _trained() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "qwen-deploy-fixture" / _recipe_hash()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The sharded folder is moved into place last, so it vouches for both.
        if not (directory / "sharded").exists():
            shutil.rmtree(directory / "whole", ignore_errors=True)
            _train(directory)
    return directory


def _train(directory: Path) -> None:
    outputs = ("--out", str(directory / "whole"), "--sharded-out", str(directory / "sharded"))
    subprocess.run(
        [sys.executable, "-m", "tests.fixture_model", *outputs],
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _recipe_hash() -> str:
    digest = hashlib.sha256()
    for name in ("chat_template.jinja", "dialogues.py", "train.py"):
        digest.update((RECIPE / name).read_bytes())
    for package in ("torch", "transformers", "tokenizers"):
        digest.update(f"{package}={version(package)}\n".encode())
    return digest.hexdigest()[:16]
