"""TLS from files, which are read again for every new connection, so that certificates can be renewed."""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import grpc

T = TypeVar("T")
logger = logging.getLogger(__name__)


class TlsError(Exception):
    """The files cannot be used; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class PemContents:
    """Contents of a set of PEM files; None for files that are not given."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None


class TlsFiles(Generic[T]):
    """Makes an object of PEM files, and a new one when a file has changed."""

    def __init__(
        self,
        make: Callable[[PemContents], T],
        *,
        ca: str | None,
        cert: str | None,
        key: str | None,
    ) -> None:
        """ca: certificates of authorities; cert and key, both or neither: a certificate chain and its private key."""
        self._make = make
        self._ca, self._cert, self._key = (None if path is None else Path(path) for path in (ca, cert, key))
        self._contents: PemContents | None = None
        self._made: T | None = None
        self._is_failing = False

    def open(self) -> T:
        """The first object. Raises TlsError."""
        contents = self._read()
        self._check(contents)
        self._contents, self._made = contents, self._make(contents)
        return self._made

    def latest(self) -> T:
        """The object made of the files' last contents that could be used. Logs the first of several failures."""
        assert self._made is not None
        try:
            contents = self._read()
            if contents != self._contents:
                self._check(contents)
                self._contents, self._made = contents, self._make(contents)
                logger.info("TLS: %s read again", ", ".join(str(path) for path in self._paths() if path is not None))
            self._is_failing = False
        except TlsError as error:
            if not self._is_failing:
                logger.error("%s; what was read before stays in use", error)
            self._is_failing = True
        return self._made

    def _paths(self) -> tuple[Path | None, Path | None, Path | None]:
        return self._ca, self._cert, self._key

    def _read(self) -> PemContents:
        return PemContents(*(None if path is None else _read_file(path) for path in self._paths()))

    def _check(self, contents: PemContents) -> None:
        """Raises TlsError if the contents cannot be used, or are no longer the files'."""
        if self._ca is not None and contents.ca is not None:
            _check_ca(self._ca, contents.ca)
        if self._cert is not None and self._key is not None:
            _check_pair(self._cert, self._key)
        # A certificate and its key are not replaced in one go: both must have been there all the time.
        if self._read() != contents:
            raise TlsError(f"TLS certificate {self._cert or self._ca}: it is just being replaced")


def server_credentials(cert: str, key: str, client_ca: str | None) -> grpc.ServerCredentials:
    """A server's credentials; with client_ca, clients must show a certificate that it has signed. Raises TlsError."""
    files = TlsFiles(_server_configuration, ca=client_ca, cert=cert, key=key)
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
    """A client's credentials: trusted authorities, and the certificate to show."""
    return TlsFiles(
        lambda contents: grpc.ssl_channel_credentials(contents.ca, contents.key, contents.cert),
        ca=ca,
        cert=cert,
        key=key,
    )


def _server_configuration(contents: PemContents) -> grpc.ServerCertificateConfiguration:
    assert contents.key is not None
    assert contents.cert is not None
    return grpc.ssl_server_certificate_configuration([(contents.key, contents.cert)], root_certificates=contents.ca)


def _check_ca(path: Path, content: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise TlsError(f"TLS CA {path}: there is no PEM certificate in it, or a damaged one") from None


def _check_pair(cert: Path, key: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_refuse)
    except ssl.SSLError as error:
        raise TlsError(
            f"TLS certificate {cert} and key {key}: not PEM, damaged, or not of each other ({error.reason})"
        ) from None
    except ValueError:
        raise TlsError(f"TLS key {key}: it is encrypted; give it without a pass phrase") from None
    except OSError as error:
        raise TlsError(f"TLS certificate {cert} and key {key}: {error.strerror}") from None


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"TLS file {path}: {error.strerror}") from None


def _refuse() -> str:
    raise ValueError("no pass phrase")
