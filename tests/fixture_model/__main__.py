"""`python -m tests.fixture_model --out DIR`: trains the fixture model into a new folder."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fixture_model", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that must not exist yet")
    parser.add_argument("--sharded-out", type=Path, help="the same weights in shards, likewise")
    options = parser.parse_args()
    wanted = [path for path in (options.out, options.sharded_out) if path]
    for path in wanted:
        if path.exists():
            parser.error(f"{path} exists")

    # One thread: several are slower for so small a model, and differ from machine to machine.
    os.environ["OMP_NUM_THREADS"] = "1"
    from tests.fixture_model.train import train

    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.parent, prefix=".training-") as temporary:
        made = (Path(temporary, "whole"), Path(temporary, "sharded"))
        train(*made)
        for source, path in zip(made, wanted, strict=False):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, path)


if __name__ == "__main__":
    main()
