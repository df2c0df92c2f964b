"""TLS from files, which are read again for every new connection, so that certificates can be renewed."""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import grpc

T = TypeVar("T")
logger = logging.getLogger(__name__)


class TlsError(Exception):
    """The files cannot be used; the message names the one and says why."""


class TlsFiles(Generic[T]):
    """What is made of some files, made anew when one of them has changed."""

    def __init__(self, load: Callable[[], T], *paths: str | None) -> None:
        """load raises TlsError; paths: the files it reads, None for those that are not given."""
        self._load = load
        self._paths = [Path(path) for path in paths if path is not None]
        self._contents: list[bytes] = []
        self._made: T | None = None
        self._is_failing = False

    def open(self) -> T:
        """The first one. Raises TlsError."""
        self._contents = [read_file(path) for path in self._paths]
        self._made = self._load()
        return self._made

    def latest(self) -> T:
        """The last one that could be made."""
        assert self._made is not None
        try:
            contents = [read_file(path) for path in self._paths]
            if contents != self._contents:
                made = self._load()
                # A certificate and its key are not replaced in one go: both must have been there all the time.
                if contents == [read_file(path) for path in self._paths]:
                    self._contents, self._made = contents, made
                    logger.info("TLS: %s read again", ", ".join(map(str, self._paths)))
            self._is_failing = False
        except TlsError as error:
            if not self._is_failing:
                logger.error("%s; what was read before stays in use", error)
            self._is_failing = True
        return self._made


def server_credentials(cert: str, key: str, client_ca: str | None) -> grpc.ServerCredentials:
    """A server's credentials; with client_ca, clients must show a certificate that it has signed. Raises TlsError."""

    def load() -> grpc.ServerCertificateConfiguration:
        chain, private_key = load_pair(cert, key)
        return grpc.ssl_server_certificate_configuration(
            [(private_key, chain)], root_certificates=None if client_ca is None else load_ca(client_ca)
        )

    files = TlsFiles(load, cert, key, client_ca)
    current = files.open()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called for every new connection, on a thread of gRPC's; None: nothing has changed."""
        nonlocal current
        latest = files.latest()
        if latest is current:
            return None
        current = latest
        return latest

    return grpc.dynamic_ssl_server_credentials(
        current,
        fetch,  # type: ignore[arg-type]  # the stubs do not know of None
        require_client_authentication=client_ca is not None,
    )


def channel_credentials(ca: str, cert: str | None, key: str | None) -> TlsFiles[grpc.ChannelCredentials]:
    """Of the side that calls: who may answer, and what to show if asked."""

    def load() -> grpc.ChannelCredentials:
        chain, private_key = load_pair(cert, key) if cert is not None and key is not None else (None, None)
        return grpc.ssl_channel_credentials(load_ca(ca), private_key, chain)

    return TlsFiles(load, ca, cert, key)


def load_ca(path: str) -> bytes:
    """PEM certificates of authorities. Raises TlsError."""
    content = read_file(Path(path))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise TlsError(f"TLS CA {path}: there is no PEM certificate in it, or a damaged one") from None
    return content


def load_pair(cert: str, key: str) -> tuple[bytes, bytes]:
    """A PEM certificate chain and its private key. Raises TlsError."""
    chain, private_key = read_file(Path(cert)), read_file(Path(key))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_refuse)
    except ssl.SSLError as error:
        raise TlsError(
            f"TLS certificate {cert} and key {key}: not PEM, damaged, or not of each other ({error.reason})"
        ) from None
    except ValueError:
        raise TlsError(f"TLS key {key}: it is encrypted; give it without a pass phrase") from None
    return chain, private_key


def read_file(path: Path) -> bytes:
    """Raises TlsError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"TLS file {path}: {error.strerror}") from None


def _refuse() -> str:
    raise ValueError("no pass phrase")
