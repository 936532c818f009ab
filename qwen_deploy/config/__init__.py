"""What to deploy: the annotated schema of qwen-deploy.yml, and its validation.

The sections are the one source: they validate the file, and reference.py prints them. Knows no
hosts' state and no network.
"""

from __future__ import annotations

from qwen_deploy.config.deployment import Deployment
from qwen_deploy.config.file import DEFAULT_PATH, load, override, parse
from qwen_deploy.config.model import Model, Weights
from qwen_deploy.config.runtime import PIP_MIRRORS, PYTORCH_CPU_INDEX, Pip, Runtime
from qwen_deploy.config.service import Service
from qwen_deploy.config.ssh import Ssh

__all__ = [
    "DEFAULT_PATH",
    "PIP_MIRRORS",
    "PYTORCH_CPU_INDEX",
    "Deployment",
    "Model",
    "Pip",
    "Runtime",
    "Service",
    "Ssh",
    "Weights",
    "load",
    "override",
    "parse",
]
