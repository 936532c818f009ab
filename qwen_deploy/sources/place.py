"""One repository of a hub at one revision, and what the errors of every hub say of it. Knows no
protocol and no hub's library."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_deploy.sources.refusals import HubMissing
from qwen_deploy.sources.settings import Endpoint, HubName


@dataclass(frozen=True, slots=True)
class Place:
    """`branch` is what no revision means there, `page` where people look at the model."""

    hub: HubName
    endpoint: Endpoint
    repo: str
    revision: str | None
    branch: str
    page: str

    def __str__(self) -> str:
        return f"{self.endpoint.host}/{self.repo}"

    @property
    def whose_token(self) -> str:
        return str(self.endpoint.token_file or "this machine")

    @property
    def names_token_file(self) -> str:
        return f"name a file with your token: weights/{self.hub}_token_file"

    def without_revision(self) -> HubMissing:
        return HubMissing(
            f"{self} has no revision `{self.revision or self.branch}`",
            hint=f"Leave model/revision out for the newest of `{self.branch}`",
        )

    def without_model(self) -> HubMissing:
        has_token = bool(self.endpoint.token)
        seen = "" if has_token else ", or shows it to no stranger"
        hint = f"Compare model/name with {self.page}"
        if "/" not in self.repo:
            hint = f"A model is named OWNER/NAME, like Qwen/Qwen2.5-7B-Instruct. {hint}"
        return HubMissing(
            f"{self.endpoint.host} has no model {self.repo}{seen}",
            hint=hint if has_token else f"{hint}; if it is private, {self.names_token_file}",
        )
