"""`python -m tests.demo`: one host from bare to an answer, shown as a person would do it.

Prints a transcript and writes it to build/demo.txt; with --write also into the READMEs. Ends with
an error where anything is not as they promise; leaves nothing of the host behind, however it ends.
"""

from __future__ import annotations

import signal
import sys

from tests.demo.session import Session, Unexpected
from tests.demo.transcript import differences, session_of, with_session
from tests.fixture_model import ROOT
from tests.lab import Lab, LabError

BUILD = ROOT / "build"
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")


def main() -> int:
    # However we are asked to end, we wait until the lab is gone.
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        with Lab(1) as lab:
            transcript = Session(lab, BUILD / "demo").play()
    except KeyboardInterrupt:
        print("\ndemo: interrupted; the host is removed", file=sys.stderr)
        return 130
    except (LabError, Unexpected) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (BUILD / "demo.txt").write_text(transcript, "utf-8")
    print(f"\ndemo: the host is removed; this is {BUILD / 'demo.txt'}", file=sys.stderr)
    if sys.argv[1:] == ["--write"]:
        for path in READMES:
            path.write_text(with_session(path.read_text("utf-8"), transcript), "utf-8")
    return _compare(transcript)


def _compare(transcript: str) -> int:
    found = [
        f"{path.name} shows something else: {line}"
        for path in READMES
        for line in differences(session_of(path.read_text("utf-8")), transcript)
    ]
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
