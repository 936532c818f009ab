"""What a bundle decides about a deployment. Pure; reads neither of them."""

from __future__ import annotations

from qwen_deploy import config
from qwen_deploy.airgap.opened import Bundle
from qwen_deploy.config import Deployment, Model
from qwen_deploy.errors import UsageError


def settle(deployment: Deployment, bundle: Bundle) -> Deployment:
    """With the bundle's model and accelerator; raises UsageError where the deployment names
    others."""
    name, accelerator = bundle.model.model, bundle.index.accelerator
    defaults = (Model.model_fields["name"].default, "auto")
    for key, given, default, packed in (
        ("model/name", deployment.model.name, defaults[0], name),
        ("runtime/accelerator", deployment.runtime.accelerator, defaults[1], accelerator),
    ):
        if given not in (default, packed):
            raise UsageError(
                f"{key} is {given}, but {bundle.path} was made for {packed}",
                hint=f"leave {key} out, or create a bundle for {given}",
            )
    own = {"model": {"name": name}, "runtime": {"accelerator": accelerator}}
    return config.override(deployment, own)
