"""How a web server is reached, and how long it is waited for: connections, proxies, credentials; no netrc."""

import http.client
import ssl
from dataclasses import dataclass
from functools import cache
from socket import gaierror
from time import monotonic
from urllib.parse import SplitResult, unquote, urlsplit


@dataclass(frozen=True)
class Patience:
    """How long a mirror may take."""

    stall: float = 30.0  # seconds without a byte
    start: float = 120.0  # seconds of the deadline for a file, before its size counts
    slowest: float = 20_000.0  # bytes a second, by which the deadline grows with the size
    tries: int = 5
    pause: float = 0.5  # seconds before the second try, doubled before each further one

    def deadline(self, size: int) -> float:
        """The moment by which a file of this size must be here, however often it is tried."""
        return monotonic() + self.start + size / self.slowest


def connection(url: SplitResult, proxy: SplitResult | None, timeout: float) -> http.client.HTTPConnection:
    """A connection to the host of `url`, or to the proxy before it; not yet open."""
    via = proxy or url
    if url.scheme == "http":
        return http.client.HTTPConnection(via.hostname or "", via.port or 80, timeout=timeout)
    port = via.port or (80 if proxy else 443)
    made = http.client.HTTPSConnection(via.hostname or "", port, timeout=timeout, context=_tls())
    if proxy:
        made.set_tunnel(url.hostname or "", url.port or 443, _basic(proxy, "Proxy-Authorization"))
    return made


_tls = cache(ssl.create_default_context)


def proxy_of(url: SplitResult) -> SplitResult | None:
    """The proxy that http_proxy, https_proxy and no_proxy name for this address."""
    from urllib.request import getproxies, proxy_bypass

    named = getproxies().get(url.scheme)
    if not named or proxy_bypass(url.netloc.rpartition("@")[2]):
        return None
    return urlsplit(named if "://" in named else f"http://{named}")


def headers(url: SplitResult) -> dict[str, str]:
    """What is said with a request to `url`."""
    proxy = proxy_of(url) if url.scheme == "http" else None
    return {
        "Host": url.netloc.rpartition("@")[2],
        "User-Agent": "imagekit",
        "Accept-Encoding": "identity",
        **_basic(url, "Authorization"),
        **(_basic(proxy, "Proxy-Authorization") if proxy else {}),
    }


def _basic(url: SplitResult, header: str) -> dict[str, str]:
    """The credentials that the user wrote into an address; they go to that host alone."""
    from base64 import b64encode

    if url.username is None:
        return {}
    return {header: "Basic " + b64encode(f"{unquote(url.username)}:{unquote(url.password or '')}".encode()).decode()}


def shown(url: str) -> str:
    """The path of an address: what may be printed."""
    return unquote(urlsplit(url).path)


def reason(error: Exception, patience: Patience, *, who: str = "the mirror") -> str:
    """In words, how a network failed."""
    if isinstance(error, TimeoutError):
        return f"{who} was silent for {patience.stall:g} s"
    if isinstance(error, gaierror):
        return f"{who}'s name cannot be resolved: {error.strerror}"
    if isinstance(error, http.client.IncompleteRead):
        return f"{who} cut the body"
    return f"the connection failed: {getattr(error, 'strerror', None) or error or type(error).__name__}"


def status(response: http.client.HTTPResponse) -> str:
    """What a server answered, as it may be printed."""
    words = "".join(c if c.isprintable() else "?" for c in response.reason or "")
    return f"{response.status} {words[:60]}".strip()
