"""What the shared reading of models refuses, as an error that an operator meets. Does not know what
makes files a model: that is qwen_weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qwen_weights.errors import BadManifest, HostRefused, NotAModel

from qwen_deploy.errors import UsageError


class CheckpointRefused(UsageError):
    """The files are no model that could be deployed; nothing was sent anywhere."""


@contextmanager
def refusals() -> Iterator[None]:
    try:
        yield
    except (NotAModel, HostRefused, BadManifest) as error:
        raise CheckpointRefused(str(error), hint=error.hint) from error
