"""Addresses to listen on: HOST:PORT, [HOST]:PORT or unix:PATH."""

import ipaddress


def host_of(listen: str) -> str:
    """The host, without brackets, for the further ports of a server; the loopback address for a Unix socket."""
    return "127.0.0.1" if listen.startswith("unix:") else listen.rpartition(":")[0].strip("[]")


def with_port(listen: str, port: int) -> str:
    """The address to connect to, once the system has picked a port."""
    return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"


def is_local(listen: str) -> bool:
    """Whether only this machine can reach a server at the address."""
    host = host_of(listen)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
