"""The one HTTP client of every download: huggingface_hub's own, with redirects that are looked at first."""

import ipaddress
import logging
import os
import re
import socket

import httpx2
from huggingface_hub import constants, get_session, is_offline_mode, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers

from aurora.core.errors import SourceError

constants.HF_HUB_DISABLE_TELEMETRY = True  # else it asks the hub by which program it is run
TIMEOUT = httpx2.Timeout(30, connect=10)  # seconds without a byte; not of the whole download
# Their lines say where a request goes and what it carries, signed addresses among them.
for library in ("httpx2", "httpcore2"):
    logging.getLogger(library).setLevel(logging.WARNING)
# Addresses of one kind may send to each other: who names a mirror inside a network trusts that network.
KINDS = (
    "is_loopback",
    "is_link_local",
    "is_multicast",
    "is_unspecified",
    "is_reserved",
    "is_site_local",
    "is_private",
)


class RefusedRedirect(SourceError):
    """A server sends to a place that the source does not name and that a stranger should not choose."""


def session() -> httpx2.Client:
    """huggingface_hub's shared client, made by this module, so that the hub's own calls are guarded too.

    Raises SourceError where the surroundings let no client be made; what they hold may be secret and is not said.
    """
    try:
        if getattr(get_session(), "event_hooks", {}).get("response") != [refuse_redirect]:
            set_client_factory(_client)
        return get_session()
    except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
        raise SourceError(
            f"no HTTP client can be made ({type(error).__name__}); correct HTTPS_PROXY, ALL_PROXY or SSL_CERT_FILE"
        ) from None


def _client() -> httpx2.Client:
    return httpx2.Client(
        follow_redirects=True,
        max_redirects=8,
        timeout=TIMEOUT,
        event_hooks={"request": [_refuse_when_offline], "response": [refuse_redirect]},
    )


def hub_token() -> str | bool:
    """The token, which comes from the environment alone, never from a file in the home folder; False without one."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise SourceError("HF_TOKEN holds a space, a line end or a character that no token has; set it again")
    return token or False


def hub_headers() -> dict[str, str]:
    """Headers for the hub."""
    return build_hf_headers(token=hub_token(), library_name="aurora")


def _refuse_when_offline(request: httpx2.Request) -> None:
    if is_offline_mode():
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")


def refuse_redirect(response: httpx2.Response) -> None:
    """Looks at where a response sends, before the client goes there.

    Raises RefusedRedirect where scheme differs, or where a public server sends to a private address, or a
    private one to a private address of another kind. Query strings stay out of the message: they may be signed.
    """
    if not response.has_redirect_location:
        return
    origin = response.request.url
    try:
        target = origin.join(response.headers["Location"])
    except (httpx2.InvalidURL, ValueError):
        raise RefusedRedirect(f"{origin.host} redirects to a malformed address; not followed") from None
    if target.scheme != origin.scheme:
        raise RefusedRedirect(
            f"{origin.host} redirects from {origin.scheme}:// to {target.scheme}://; not followed"
        )
    if target.host == origin.host:
        return
    allowed = kinds(origin.host)
    for kind in kinds(target.host):
        if kind != "public" and kind not in allowed:
            raise RefusedRedirect(f"{origin.host} redirects to {target.host}, a {kind} address; not followed")


def kinds(host: str) -> set[str]:
    """What the addresses of a host are: public, private, loopback, link_local, multicast, reserved …

    A name that this machine cannot resolve is left to the connection, which fails or goes by a proxy.
    """
    try:
        found = {item[4][0] for item in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return {"public"}
    return {_kind(ipaddress.ip_address(address.split("%")[0])) for address in found}


def _kind(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    address = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    for kind in KINDS:
        if getattr(address, kind, False):
            return kind.removeprefix("is_")
    return "public" if address.is_global else "private"  # 100.64.0.0/10 is neither private nor global
