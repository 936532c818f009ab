"""The inference service that runs on a host: an OpenAI-compatible API over one Qwen model."""

__version__ = "0.1.0"
