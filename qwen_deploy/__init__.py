"""qwen-deploy: from a bare Linux host that answers SSH to a proven Qwen service."""

__version__ = "0.1.0"
