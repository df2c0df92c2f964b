"""Connections to this machine never go through a proxy, and errors name one that is used."""

import pytest
from pagewire import AsyncClient, Unavailable
from pagewire.proxies import channel_options, is_local, proxy_in_use
from pagewire.retry import NEVER


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:1",
        "localhost:1",
        "[::1]:1",
        "dns:///127.1.2.3:1",
        "unix:/x",
        "localhost",
        "dns:localhost:1",
        "ipv4:127.0.0.1:1",
        "ipv6:[::1]:1",
    ],
)
def test_local_targets(target):
    assert is_local(target)
    assert channel_options(target) == (("grpc.enable_http_proxy", 0),)


@pytest.mark.parametrize("target", ["10.0.0.1:1", "example.org:1", "dns:///pagewire:50051", "[2001:db8::1]:1", "host"])
def test_other_targets(target):
    assert not is_local(target)
    assert channel_options(target) == ()


async def test_a_proxy_that_is_used_is_named(monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "grpc_proxy", "https_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with AsyncClient("pagewire.invalid:50051", retry=NEVER) as client:
        with pytest.raises(Unavailable, match="through the proxy http://127.0.0.1:9"):
            await client.complete("x", timeout_s=20)


async def test_a_local_server_is_reached_past_the_proxy(monkeypatch, fake):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with AsyncClient(fake.target, retry=NEVER) as client:
        assert (await client.complete("x")).finished


def test_a_proxys_password_is_not_shown_and_exempt_hosts_have_none(monkeypatch):
    for name in ("no_proxy", "grpc_proxy", "https_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://user:secret@proxy.corp:3128")
    assert proxy_in_use("example.org:1") == "http://proxy.corp:3128"
    monkeypatch.setenv("no_proxy", "other.net, example.org")
    assert proxy_in_use("a.example.org:1") is None
    assert proxy_in_use("example.com:1") == "http://proxy.corp:3128"
