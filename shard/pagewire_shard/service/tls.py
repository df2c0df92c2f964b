"""TLS from files, which are read again for every new connection, so that certificates can be renewed."""

import logging
import ssl
from pathlib import Path

import grpc

from pagewire_shard.errors import BadOption

logger = logging.getLogger(__name__)


class ServerCertificate:
    """What a server shows routers, and of whom routers must show a certificate."""

    def __init__(self, cert: str, key: str, client_ca: str | None) -> None:
        """Reads the files. Raises BadOption, which names the one that cannot be used."""
        self._paths = [Path(cert), Path(key), *([] if client_ca is None else [Path(client_ca)])]
        self._is_failing = False
        self._contents = self._load()

    def credentials(self) -> grpc.ServerCredentials:
        """For a port of a gRPC server."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._contents),
            self._fetch,  # type: ignore[arg-type]  # the stubs do not know of None
            require_client_authentication=len(self._paths) > 2,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called for every new connection, on a thread of gRPC's; None: nothing has changed."""
        try:
            contents = self._load()
        except BadOption as error:
            if not self._is_failing:
                logger.error("%s; what was read before stays in use", error.message)
            self._is_failing = True
            return None
        self._is_failing = False
        if contents == self._contents:
            return None
        logger.info("TLS: %s read again", ", ".join(map(str, self._paths)))
        self._contents = contents
        return _configuration(contents)

    def _load(self) -> list[bytes]:
        """The files' contents, which fit together."""
        contents = [_read(path) for path in self._paths]
        cert, key = self._paths[:2]
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_refuse)
        except ssl.SSLError as error:
            raise BadOption(
                f"TLS certificate {cert} and key {key}: not PEM, damaged, or not of each other ({error.reason})"
            ) from None
        except ValueError:
            raise BadOption(f"TLS key {key}: it is encrypted; give it without a pass phrase") from None
        for path, content in list(zip(self._paths, contents, strict=True))[2:]:
            _check_ca(path, content)
        # A certificate and its key are not replaced in one go.
        if contents != [_read(path) for path in self._paths]:
            raise BadOption(f"TLS certificate {cert}: it is just being replaced")
        return contents


def _configuration(contents: list[bytes]) -> grpc.ServerCertificateConfiguration:
    cert, key, *client_ca = contents
    return grpc.ssl_server_certificate_configuration(
        [(key, cert)], root_certificates=client_ca[0] if client_ca else None
    )


def _check_ca(path: Path, content: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise BadOption(f"TLS CA {path}: there is no PEM certificate in it, or a damaged one") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadOption(f"TLS file {path}: {error.strerror}") from None


def _refuse() -> str:
    raise ValueError("no pass phrase")
