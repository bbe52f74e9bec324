"""Images over https: only from servers whose certificate is valid, and never on over http."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

import pytest
import signed_rig
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from debian_mirror import Answer, Mirror
from range_rig import ranges

from imagekit import remote, wire
from imagekit.errors import RigProblem


def certificate(folder: Path) -> Path:
    """A certificate of 127.0.0.1 with its key, signed by itself."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(secret, hashes.SHA256())
    )
    pem = secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return folder / "both.pem"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    (tmp_path / "served").mkdir()
    signed_rig.signed(tmp_path / "served", signed_rig.SMALL, name="small")
    running = Mirror(tmp_path / "served")
    running.answers["*"] = ranges
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (Answer,), {"mirror": running}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # a reader that hung up is no news
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificate(tmp_path))
    server.socket = own.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    running.address = f"https://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    wire._tls.cache_clear()
    yield running
    server.shutdown()
    thread.join()
    server.server_close()
    wire._tls.cache_clear()


def fetched(url: str, tmp_path: Path) -> Path:
    return remote.fetch(url, (signed_rig.KEY,), cache=tmp_path / "cache", say=lambda _: None)


def test_a_certificate_that_is_not_valid(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(RigProblem, match="the server's certificate is not valid: self-signed certificate"):
        fetched(f"{mirror.address}/small", tmp_path)


def test_a_certificate_that_is_valid(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert fetched(f"{mirror.address}/small", tmp_path).read_bytes() == (mirror.folder / "small").read_bytes()
    mirror.answers["*"] = lambda answer: answer.body(b"", 302, Location="http://127.0.0.1:9/small")
    with pytest.raises(RigProblem, match=r"the server redirects to 'http://127.0.0.1:9/small'"):
        fetched(f"{mirror.address}/small", tmp_path)
