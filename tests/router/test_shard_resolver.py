"""Resolves targets to addresses by the machine's own resolver."""

import asyncio
import socket

import pytest
from pagewire_router.groups.shard_resolver import DnsResolver, dns_name


async def test_a_name_stands_for_all_its_addresses():
    addresses = await DnsResolver().resolve("localhost", 50052)
    assert "127.0.0.1:50052" in addresses
    assert set(addresses) <= {"127.0.0.1:50052", "[::1]:50052"}
    assert await DnsResolver().resolve("::1", 5) == ["[::1]:5"]


async def test_all_addresses_of_both_families_are_given(monkeypatch):
    async def many(host, port, *, type):
        return [
            (socket.AF_INET, type, 6, "", ("10.0.0.1", port)),
            (socket.AF_INET, type, 6, "", ("10.0.0.2", port)),
            (socket.AF_INET6, type, 6, "", ("fd00::1", port, 0, 0)),
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", many)
    assert await DnsResolver().resolve("shards", 5) == ["10.0.0.1:5", "10.0.0.2:5", "[fd00::1]:5"]


@pytest.mark.parametrize("number", [socket.EAI_NONAME, socket.EAI_NODATA])
async def test_a_name_that_nobody_has_stands_for_no_address(monkeypatch, number):
    async def nobody(host, port, *, type):
        raise socket.gaierror(number, "not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", nobody)
    assert list(await DnsResolver().resolve("shards", 5)) == []


async def test_a_name_server_that_is_away_is_an_error(monkeypatch):
    async def away(host, port, *, type):
        raise socket.gaierror(socket.EAI_AGAIN, "temporary failure")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", away)
    with pytest.raises(OSError, match="temporary failure"):
        await DnsResolver().resolve("shards", 5)


def test_names_are_told_from_addresses():
    assert dns_name("dns:///shards.ns.svc:50052") == ("shards.ns.svc", 50052)
    assert dns_name("shards:50052") is None
    assert dns_name("unix:/tmp/shard.sock") is None
