"""Decides which connections go through an HTTP proxy. Those to this machine never do."""

import os
import re
from ipaddress import ip_address

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Environment variables that name a proxy, in gRPC's order; the first that is set counts."""
EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
"""Environment variables with suffixes of host names that are reached without a proxy; the first that is set counts."""

_SCHEME = re.compile(r"(dns|ipv4|ipv6):(?!\d+$)")
"""The scheme of a target; "dns:50051" is no scheme but a host called dns with its port."""


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
    """Returns channel options for the target: those that keep it from using a proxy, if it is local."""
    return (("grpc.enable_http_proxy", 0),) if is_local(target) else ()


def proxy_in_use(target: str) -> str | None:
    """Returns the proxy through which gRPC would reach the target, by the environment variables."""
    if is_local(target):
        return None
    proxy = next((os.environ[name] for name in VARIABLES if os.environ.get(name)), None)
    if proxy is None or _is_exempt(_host(target)):
        return None
    # The proxy's password is left out, because errors are shown and logged.
    scheme, separator, rest = proxy.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _host(target: str) -> str:
    """Returns the host of "host:port", "host", "dns:///host:port", "dns:host:port" or "ipv6:[address]:port"."""
    address = _SCHEME.sub("", target).rpartition("/")[2]
    return address.rpartition(":")[0].strip("[]") or address


def _is_exempt(host: str) -> bool:
    """Returns whether the host's name ends in an entry of gRPC's list of exceptions."""
    exempt = next((os.environ[name] for name in EXCEPTIONS if os.environ.get(name)), "")
    return any(name and host.endswith(name) for name in exempt.replace(" ", "").split(","))
