"""Which connections go through an HTTP proxy: never those to this machine."""

import os
import re
from ipaddress import ip_address

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""As gRPC reads them, the first that is set."""
EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
"""Likewise: ends of names of hosts that are reached without a proxy."""

_SCHEME = re.compile(r"(dns|ipv4|ipv6):(?!\d+$)")
"""Not a host of such a name with its port."""


def is_local(target: str) -> bool:
    """Whether a gRPC target is a Unix socket or a loopback address."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = _host(target)
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
    proxy = next((os.environ[name] for name in VARIABLES if os.environ.get(name)), None)
    if proxy is None or _is_exempt(_host(target)):
        return None
    # Errors are shown and logged: not with the proxy's password.
    scheme, separator, rest = proxy.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _host(target: str) -> str:
    """The host of "host:port", "host", "dns:///host:port", "dns:host:port" or "ipv6:[address]:port"."""
    address = _SCHEME.sub("", target).rpartition("/")[2]
    return address.rpartition(":")[0].strip("[]") or address


def _is_exempt(host: str) -> bool:
    """Whether gRPC's list of exceptions ends the host's name."""
    exempt = next((os.environ[name] for name in EXCEPTIONS if os.environ.get(name)), "")
    return any(name and host.endswith(name) for name in exempt.replace(" ", "").split(","))
