"""ModelScope, or a mirror that answers as it does. The only module that imports its SDK, for lists
and small files; bytes travel by the agent. Knows no other hub.

`modelscope_hub` is what `modelscope` itself asks with; importing the latter takes seconds.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from qwen_weights.manifest import Origin

from qwen_deploy.sources import listing, upstreams
from qwen_deploy.sources.listing import Listed, Listing
from qwen_deploy.sources.pinned import Upstream
from qwen_deploy.sources.place import Place
from qwen_deploy.sources.refusals import (
    HubError,
    HubMissing,
    HubRefused,
    HubUnreachable,
    ListRefused,
)
from qwen_deploy.sources.settings import Endpoint, HubName, Settings, endpoint
from qwen_deploy.sources.wire import Wire

if TYPE_CHECKING:
    import requests
    from modelscope_hub import APIError, HubApi

NAME: HubName = "modelscope"
BRANCH = "master"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def ask(settings: Settings, wire: Wire, url: str | None = None, name: str = NAME) -> Listing:
    """What the revision holds now. Raises a HubError."""
    at = endpoint(settings, NAME, url)
    return _Repository(settings, wire, at, name).listing()


class _Repository:
    def __init__(self, settings: Settings, wire: Wire, at: Endpoint, name: str) -> None:
        at = signed_in(at)
        self._settings = settings
        self._name = name
        repo = settings.name
        self._place = Place(NAME, at, repo, settings.revision, BRANCH, f"{at.url}/models/{repo}")
        self._adapter = _adapter(wire)
        self._api = _api(at, self._adapter)

    def listing(self) -> Listing:
        revision = self._place.revision or BRANCH
        with _typed(self._place, self._api):
            found = self._api.list_repo_files(self._place.repo, "model", revision=revision)
            rows = [Listed(row.path, row.size, row.sha256) for row in found if not row.is_dir]
        place, at = str(self._place), self._place.endpoint
        return Listing(
            place,
            Origin(NAME, self._place.revision, _commit(self._place.revision)),
            listing.select(place, rows),
            (upstream(self._settings, at, self._place.repo, revision, self._name),),
            self._read,
        )

    def _read(self, row: Listed) -> bytes:
        import requests
        from modelscope_hub.errors import raise_for_status

        at = self._place.endpoint
        headers = {"Authorization": f"Bearer {at.token}"} if at.token else {}
        with requests.Session() as session, _typed(self._place, self._api):
            _use(session, self._adapter)
            template = _address(at, self._place.repo, self._place.revision)
            url = template.replace("{query}", quote(row.path, safe=""))
            answer = session.get(url, headers=headers)
            if answer.status_code == 404:
                raise listing.broken_promise(str(self._place), row.path, answer.status_code)
            raise_for_status(answer)
            return answer.content


def _address(at: Endpoint, repo: str, revision: str | None) -> str:
    asked = f"Revision={quote(revision or BRANCH, safe='')}&FilePath={{query}}"
    return f"{at.url}/api/v1/models/{repo}/repo?{asked}"


def upstream(
    settings: Settings, at: Endpoint, repo: str, revision: str | None, name: str
) -> Upstream:
    return upstreams.wan(settings, name, _address(at, repo, revision), token=at.token)


def _commit(revision: str | None) -> str | None:
    """Its lists name no commit; the SHA-256 of every file pins what was listed."""
    return revision if revision and _COMMIT.fullmatch(revision) else None


def _api(at: Endpoint, adapter: Any) -> HubApi:
    from modelscope_hub import HubApi, HubConfig

    logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)
    # It would write an identity of this user there; "" keeps it from looking for a token.
    nowhere = Path(os.devnull, "modelscope")
    api = HubApi(HubConfig(at.url, config_dir=nowhere, token=at.token or ""))
    for session in (api.legacy._session, api.legacy._read_session):
        _use(session, adapter)
    return api


def _use(session: requests.Session, adapter: Any) -> None:
    session.trust_env = False
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)


def _adapter(wire: Wire) -> Any:
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPResponse

    class Adapter(HTTPAdapter):
        def send(
            self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
        ) -> requests.Response:
            headers = {name: str(value) for name, value in request.headers.items()}
            reply = wire.ask(request.method or "GET", request.url or "", headers)
            raw = HTTPResponse(
                io.BytesIO(reply.body), reply.headers, reply.status, preload_content=False
            )
            return self.build_response(request, raw)

    return Adapter()


def signed_in(at: Endpoint) -> Endpoint:
    """What `modelscope login` wrote; a mirror must not see it."""
    from modelscope_hub import HubConfig

    if at.token or not at.is_official:
        return at
    return replace(at, token=HubConfig(at.url).token or None)


@contextmanager
def _typed(place: Place, api: HubApi) -> Iterator[None]:
    import modelscope_hub
    import requests

    try:
        yield
    except requests.TooManyRedirects as error:
        raise HubUnreachable(f"{place.endpoint.host} leads in a circle: {error}") from error
    except modelscope_hub.NotExistError as error:
        raise _missing(place, api) from error
    except modelscope_hub.APIError as error:
        raise _refusal(place, error) from error
    except modelscope_hub.HubError as error:
        raise HubUnreachable(f"{place.endpoint.host} cannot be read: {error.message}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # The SDK trusts its hub, and fails in any way where that answers something else.
        raise ListRefused(f"{place} does not answer as ModelScope does") from error


def _missing(place: Place, api: HubApi) -> HubMissing:
    import modelscope_hub

    try:
        api.legacy.get_repo_info(place.repo, "model")
    except (modelscope_hub.HubError, ValueError):
        return place.without_model()
    return place.without_revision()


def _refusal(place: Place, error: APIError) -> HubError:
    at, status = place.endpoint, error.status_code
    if status not in (401, 403):
        return HubUnreachable(f"{at.host} answers {status} for {place.repo}: {error.message}")
    if not at.token:
        return HubRefused(
            f"{place} is for accounts that may read it, and no token was given: {error.message}",
            hint=f"Ask for access at {place.page}, then {place.names_token_file}",
        )
    if status == 401:
        return HubRefused(
            f"{at.host} does not take the token of {place.whose_token}: {error.message}",
            hint=f"Make one at {at.url}/my/myaccesstoken and {place.names_token_file}",
        )
    return HubRefused(
        f"{place} is not for the account of the token of {place.whose_token}: {error.message}",
        hint=f"Ask for access at {place.page}",
    )
