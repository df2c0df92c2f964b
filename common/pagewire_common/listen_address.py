"""What an address to listen on says of who can reach it."""

import ipaddress


def is_local(listen: str) -> bool:
    """Whether only this machine reaches a server that listens at host:port or unix:PATH."""
    if listen.startswith("unix:"):
        return True
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
