"""The chat page: a client of the service's own HTTP API that is served by the same process.

`Site` is the door to it; gradio is imported by `interface` alone, and only once somebody comes.
"""

from qwen_service.webui.site import Site

__all__ = ["Site"]
