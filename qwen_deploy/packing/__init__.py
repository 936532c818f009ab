"""Makes a bundle (see airgap): brings wheels and weights here and writes them into one file.

Knows no hosts and no terminal.
"""

from __future__ import annotations

from qwen_deploy.packing.create import Contents, check, create

__all__ = ["Contents", "check", "create"]
