"""A web server: `imagekit serve`, or any other that hands out files; read only."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from urllib.parse import quote, urlsplit

from imagekit import download
from imagekit.errors import Problem
from imagekit.package import Gone
from imagekit.site import Beat, Blob, Missing, Site
from imagekit.store import Store


def open_site(place: str) -> Site:
    """The depot at an address; credentials in it go to that host alone and are never shown."""
    url = urlsplit(place)
    if not url.hostname or url.query or url.fragment:
        raise Problem(f"{url.scheme}: addresses of depots look like {url.scheme}://HOST/PATH")
    shown = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    address = place.rstrip("/")
    return Site(place=shown, read=partial(_read, address), bring=partial(_bring, address))


def _read(address: str, path: str, limit: int) -> bytes:
    with closing(download.Calls()) as calls:
        try:
            return download.text(calls.line(), f"{address}/{quote(path)}", limit)
        except download.Missing as missing:
            raise Missing(missing.message, missing.hint) from missing


def _bring(address: str, blobs: Sequence[Blob], store: Store, beat: Beat, until: float) -> None:
    def one(line: download.Line, blob: Blob) -> None:
        download.fetch(
            line, address, blob.path, size=blob.size, digest=blob.digest, store=store, beat=beat, until=until
        )

    try:
        download.each(one, blobs)
    except Gone as gone:
        raise Missing(gone.message, gone.hint) from gone


SITE = open_site
