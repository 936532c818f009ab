"""Hugging Face, or a mirror that answers as it does. The only module that imports huggingface_hub,
for lists and small files; bytes travel by the agent. Knows no other hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from qwen_weights.manifest import Origin

from qwen_deploy.sources import listing, upstreams
from qwen_deploy.sources.listing import Listed, Listing
from qwen_deploy.sources.pinned import Upstream
from qwen_deploy.sources.place import Place
from qwen_deploy.sources.refusals import HubError, HubRefused, HubUnreachable, ListRefused
from qwen_deploy.sources.settings import Endpoint, HubName, Settings, endpoint
from qwen_deploy.sources.wire import Wire

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

NAME: HubName = "huggingface"
BRANCH = "main"
_CLIENT = "qwen-deploy"


def ask(settings: Settings, wire: Wire, url: str | None = None, name: str = NAME) -> Listing:
    """What the revision holds now. Raises a HubError."""
    at = endpoint(settings, NAME, url)
    return _Repository(settings, wire, at, name).listing()


class _Repository:
    def __init__(self, settings: Settings, wire: Wire, at: Endpoint, name: str) -> None:
        from huggingface_hub import set_client_factory

        # The library has one session for the whole process; its connections are ours.
        logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
        set_client_factory(lambda: _client(wire))
        self._settings = settings
        self._name = name
        at = signed_in(at)
        repo = settings.name
        self._place = Place(NAME, at, repo, settings.revision, BRANCH, f"{at.url}/{repo}")

    def listing(self) -> Listing:
        with _typed(self._place):
            commit, rows = _rows(self._place)
        place, at = str(self._place), self._place.endpoint
        return Listing(
            place,
            Origin(NAME, self._place.revision, commit),
            listing.select(place, rows),
            (upstream(self._settings, at, self._place.repo, commit, self._name),),
            lambda row: self._read(commit, row),
        )

    def _read(self, commit: str, row: Listed) -> bytes:
        from huggingface_hub import get_session, hf_raise_for_status

        with _typed(self._place):
            at = self._place.endpoint
            headers = {"Authorization": f"Bearer {at.token}"} if at.token else {}
            template = _address(at, self._place.repo, commit)
            url = template.replace("{path}", quote(row.path))
            answer = get_session().get(url, headers=headers)
            if answer.status_code == 404:
                raise listing.broken_promise(str(self._place), row.path, answer.status_code)
            hf_raise_for_status(answer)
            return answer.content


def _address(at: Endpoint, repo: str, commit: str) -> str:
    return f"{at.url}/{repo}/resolve/{commit}/{{path}}"


def upstream(settings: Settings, at: Endpoint, repo: str, commit: str, name: str) -> Upstream:
    return upstreams.wan(settings, name, _address(at, repo, commit), token=at.token)


def _client(wire: Wire) -> httpx2.Client:
    import httpx2

    class Transport(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            headers = {name: value for name, value in request.headers.items() if name != "host"}
            reply = wire.ask(request.method, str(request.url), headers)
            return httpx2.Response(reply.status, headers=reply.headers, content=reply.body)

    return httpx2.Client(transport=Transport(), follow_redirects=True)


def signed_in(at: Endpoint) -> Endpoint:
    """What `hf auth login` wrote; a mirror must not see it."""
    from huggingface_hub import get_token

    return replace(at, token=at.token or get_token()) if at.is_official else at


def _rows(place: Place) -> tuple[str, list[Listed]]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    token = place.endpoint.token or False
    api = HfApi(place.endpoint.url, token=token, library_name=_CLIENT)
    commit = api.repo_info(place.repo, revision=place.revision).sha
    if not commit or len(commit) != 40:
        raise ListRefused(f"{place} names the commit {commit!r}, which is none")
    tree = api.list_repo_tree(place.repo, recursive=True, revision=commit)
    return commit, [_listed(row) for row in tree if isinstance(row, RepoFile)]


def _listed(row: Any) -> Listed:
    if row.lfs is None:
        return Listed(row.path, row.size, git=row.blob_id)
    return Listed(row.path, row.lfs.size, row.lfs.sha256)


@contextmanager
def _typed(place: Place) -> Iterator[None]:
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        raise _refusal(place, error) from error
    except httpx2.TooManyRedirects as error:
        raise HubUnreachable(f"{place.endpoint.host} leads in a circle: {error}") from error
    except (errors.HFValidationError, errors.OIDCError) as error:
        raise HubRefused(f"{place} cannot be asked for: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # The library trusts its hub, and fails in any way where that answers something else.
        raise ListRefused(f"{place} does not answer as Hugging Face does") from error


def _refusal(place: Place, error: HfHubHTTPError) -> HubError:
    from huggingface_hub import errors

    at, status = place.endpoint, error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return _gated(place)
    if isinstance(error, errors.RevisionNotFoundError):
        return place.without_revision()
    if isinstance(error, errors.RepositoryNotFoundError):
        return place.without_model()
    if status == 401 and at.token:
        return HubRefused(
            f"{at.host} does not know the token of {place.whose_token}",
            hint=f"Make one at {at.url}/settings/tokens and {place.names_token_file}",
        )
    if status in (401, 403):
        return HubRefused(f"{at.host} refuses {place.repo}: {_said(error)}")
    if status == 404:
        return place.without_model()
    return HubUnreachable(f"{at.host} answers {status} for {place.repo}")


def _gated(place: Place) -> HubRefused:
    if place.endpoint.token:
        return HubRefused(
            f"{place} is gated, and the account of the token of {place.whose_token} has no access",
            hint=f"Ask for access at {place.page}",
        )
    return HubRefused(
        f"{place} is gated: it is for accounts that asked, and no token was given",
        hint=f"Ask for access at {place.page}, then {place.names_token_file}",
    )


def _said(error: HfHubHTTPError) -> str:
    return error.server_message or f"status {error.response.status_code}"
