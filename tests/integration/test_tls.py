"""Client, router and shard as processes, with certificates and a key between them."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Authority, Issued
from cluster import Service, free_port

KEY = "key-of-the-test"


@dataclass
class SecuredService:
    """Where it is, and what lets one in."""

    address: str
    authority: Authority
    client: Issued
    key_file: Path

    def complete(self, *flags: str, key: str | None = None) -> "subprocess.CompletedProcess[str]":
        """Runs `pagewire complete`."""
        environment = {**os.environ, **({} if key is None else {"PAGEWIRE_API_KEY": key})}
        command = [sys.executable, "-m", "pagewire", "complete", "Hello", "--server", self.address, "--max-tokens", "3"]
        return subprocess.run(
            [*command, "--ignore-eos", *flags], env=environment, capture_output=True, text=True, timeout=120
        )

    @property
    def flags(self) -> tuple[str, ...]:
        """Certificates, but no key."""
        return "--tls-ca", self.authority.ca, "--tls-cert", self.client.cert, "--tls-key", self.client.key


@pytest.fixture(scope="module")
def secured() -> Iterator[SecuredService]:
    """The demo model behind mutual TLS on both ways, its shard behind a name."""
    with tempfile.TemporaryDirectory(prefix="pw-") as name, ExitStack() as stack:
        directory = Path(name)
        authority = Authority(directory / "authority")
        shard, router = authority.issue("shard", "localhost"), authority.issue("router", "127.0.0.1")
        key_file, port = directory / "keys", free_port()
        key_file.write_text(KEY + "\n")

        def start(name: str, *command: str) -> Service:
            service = Service(name, [sys.executable, "-m", *command, "--exit-with-parent"], directory)
            stack.callback(service.stop)
            return service

        start(
            *("shard", "pagewire_shard", "--model", "demo", "--listen", f"127.0.0.1:{port}"),
            *("--device", "cpu", "--cpu-threads", "1"),
            *("--tls-cert", shard.cert, "--tls-key", shard.key, "--tls-client-ca", authority.ca),
        )
        router_service = start(
            *("router", "pagewire_router", "--shards", f"dns:///localhost:{port}", "--listen", "127.0.0.1:0"),
            *("--tls-cert", router.cert, "--tls-key", router.key, "--tls-client-ca", authority.ca),
            *("--shard-tls-ca", authority.ca, "--shard-tls-cert", router.cert, "--shard-tls-key", router.key),
            *("--api-keys", str(key_file), "--drain-grace", "1"),
        )
        yield SecuredService(router_service.wait_ready(), authority, authority.issue("client"), key_file)


def test_a_client_with_certificate_and_key_is_served(secured: SecuredService) -> None:
    done = secured.complete(*secured.flags, "--api-key-file", str(secured.key_file))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_key_may_come_from_the_environment(secured: SecuredService) -> None:
    assert secured.complete(*secured.flags, key=KEY).returncode == 0


def test_without_a_key_the_router_says_what_is_missing(secured: SecuredService) -> None:
    done = secured.complete(*secured.flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: an API key is needed" in done.stderr


def test_a_key_that_cannot_be_read_is_named(secured: SecuredService) -> None:
    done = secured.complete(*secured.flags, "--api-key-file", "/none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: api_key_file: /none: No such file or directory\n"


def test_a_certificate_that_cannot_be_read_is_named(secured: SecuredService) -> None:
    done = secured.complete("--tls-ca", "/none", key=KEY)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: tls_ca: /none: No such file or directory\n"


def test_a_plain_client_gets_nothing(secured: SecuredService) -> None:
    done = secured.complete("--timeout", "5", key=KEY)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: no pagewire server answers" in done.stderr
