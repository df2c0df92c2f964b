"""Which connections go through an HTTP proxy: never those to this machine."""

import os
from ipaddress import ip_address

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""As gRPC reads them, the first that is set."""


def is_local(target: str) -> bool:
    """Whether a gRPC target is a Unix socket or a loopback address."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target.rpartition("/")[2].rpartition(":")[0].strip("[]") or target
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def channel_options(target: str) -> tuple[tuple[str, int], ...]:
    """Options of a channel to the target beside its others."""
    return (("grpc.enable_http_proxy", 0),) if is_local(target) else ()


def proxy_in_use(target: str) -> str | None:
    """The proxy that gRPC would reach the target through, as far as its environment says."""
    if is_local(target):
        return None
    return next((os.environ[name] for name in VARIABLES if os.environ.get(name)), None)
