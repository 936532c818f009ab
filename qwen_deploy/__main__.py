"""The `qwen-deploy` program."""

from __future__ import annotations

import sys


def main() -> None:
    """Whoever interrupts before the command has begun is answered as one who does later."""
    try:
        from qwen_deploy.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
