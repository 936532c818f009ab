"""`python -m tests.bench`: runs every benchmark, prints its figures and writes them to one file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.bench import fanout, looks, service, sse, up, weights

OUTPUT = Path("build/bench/figures.json")


def main() -> int:
    figures: dict[str, float] = {}
    for benchmark in (up, weights, fanout, looks, sse, service):
        for name, value in benchmark.measure():
            figures[name] = round(value, 3)
            print(f"{name:<32} {value:10.3f}", flush=True)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"wrote {OUTPUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
