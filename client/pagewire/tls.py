"""Credentials of TLS connections to a server."""

from pathlib import Path

import grpc

from pagewire.errors import InvalidRequest


def channel_credentials(
    *, tls: bool = False, ca: str | None = None, cert: str | None = None, key: str | None = None
) -> grpc.ChannelCredentials | None:
    """Returns credentials from PEM files, or None for a plaintext connection.

    Without `ca`, gRPC's list of authorities is trusted.

    Raises:
        InvalidRequest: a file cannot be read or is not PEM, or one of `cert` and `key` is missing.
    """
    if not (tls or ca or cert or key):
        return None
    if bool(cert) != bool(key):
        raise InvalidRequest.of_field(
            "tls_key" if cert else "tls_cert", "is missing: tls_cert and tls_key need each other"
        )
    contents = [_read(name, path) for name, path in (("tls_ca", ca), ("tls_key", key), ("tls_cert", cert))]
    return grpc.ssl_channel_credentials(*contents)


def _read(name: str, path: str | None) -> bytes | None:
    if not path:
        return None
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as exc:
        raise InvalidRequest.of_field(name, f"{path}: {exc.strerror}") from exc
    if b"-----BEGIN " not in content:
        raise InvalidRequest.of_field(name, f"{path} is not a PEM file")
    return content
