"""One file with all that hosts without a network need: weights, wheels, uv and the service.

`open` proves its structure, and its members are served from where they lie. Knows neither hosts,
nor how the file is made (see packing).
"""

from __future__ import annotations

from qwen_deploy.airgap.fit import settle
from qwen_deploy.airgap.index import BundleRefused, Index, Member
from qwen_deploy.airgap.opened import Bundle, damaged, open, program_files, read

__all__ = [
    "Bundle",
    "BundleRefused",
    "Index",
    "Member",
    "damaged",
    "open",
    "program_files",
    "read",
    "settle",
]
