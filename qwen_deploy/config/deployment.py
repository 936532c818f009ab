"""The whole file as one value: every section, in the order in which they are written."""

from __future__ import annotations

from pydantic import Field

from qwen_deploy.config.fields import HostText, Section
from qwen_deploy.config.model import Model, Weights
from qwen_deploy.config.runtime import Pip, Runtime
from qwen_deploy.config.service import Service
from qwen_deploy.config.ssh import Ssh


class Deployment(Section):
    hosts: tuple[HostText, ...] = Field(
        (),
        description="Hosts to deploy to, as [user@]address[:port]; the first is changed first.",
        examples=[["root@192.168.110.131"]],
    )
    model: Model = Field(Model(), description="The model.")
    weights: Weights = Field(Weights(), description="How weights travel to the hosts.")
    service: Service = Field(Service(), description="The HTTP service.")
    runtime: Runtime = Field(Runtime(), description="The Python environment on the host.")
    pip: Pip = Field(
        Pip(), description="Where Python packages come from; also the service user's pip.conf."
    )
    ssh: Ssh = Field(Ssh(), description="How to reach the hosts.")
