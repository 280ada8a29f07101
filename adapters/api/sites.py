"""Requests that other sites cause: cross-site ones, and those by a name that was rebound to us.

Browsers send cookies and Basic credentials along with requests that other sites make them send, and
a site may have its own name point at an address that only the browser can reach.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

# Names below these are in no public registry, so no stranger can have one point somewhere.
_PRIVATE = (".localhost", ".local", ".internal")


def is_cross_site(headers: Mapping[str, str]) -> bool:
    """Return whether a browser says that another site made it send this request.

    By Sec-Fetch-Site, and where a browser does not send it by an Origin that does not name the
    Host; an Origin of `null` is another site in any case. A client that sends neither is no browser
    of today, and nobody made it send anything.
    """
    site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
    if origin == "null" or site not in ("same-origin", "none"):
        return True
    # "same-origin" is the browser's own comparison, with the address that it used: a proxy may
    # have told the app another Host.
    if origin is None or site == "same-origin":
        return False
    return not _names_host(origin, headers.get("host", ""))


def may_be_rebound(headers: Mapping[str, str], hosts: Collection[str]) -> bool:
    """Return whether the Host is a name that a stranger may have had point at this server.

    An address, a name without a dot, and a name below `.localhost`, `.local` or `.internal` are
    none. A request without a Host is no browser's.

    Args:
        headers: The request's.
        hosts: Further names that are the server's own, in lower case.
    """
    host = headers.get("host")
    if host is None:
        return False
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return True
    if name in hosts:
        return False
    try:
        ip_address(name)
    except ValueError:
        return not name or ("." in name and not name.endswith(_PRIVATE))
    return False


def _names_host(origin: str, host: str) -> bool:
    try:
        theirs = urlsplit(origin)
        # Behind a proxy the app does not know the scheme that the client used: the Origin does.
        ours = urlsplit(f"{theirs.scheme}://{host}")
        return (
            theirs.scheme in ("http", "https")
            and bool(theirs.hostname)
            and (theirs.hostname, _port(theirs)) == (ours.hostname, _port(ours))
        )
    except ValueError:
        return False


def _port(url: SplitResult) -> int:
    if url.port is None:
        return 443 if url.scheme == "https" else 80
    return url.port
