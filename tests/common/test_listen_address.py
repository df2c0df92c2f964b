"""Properties of addresses to listen on."""

import pytest
from pagewire_common.listen_address import host_of, is_local, with_port


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:50051", True),
        ("127.9.9.9:0", True),
        ("[::1]:50051", True),
        ("localhost:50051", True),
        ("unix:/run/router.sock", True),
        ("0.0.0.0:50051", False),
        ("[::]:50051", False),
        ("10.0.0.7:50051", False),
        ("router.example:50051", False),
    ],
)
def test_only_loopback_is_local(listen: str, expected: bool) -> None:
    assert is_local(listen) is expected


def test_further_ports_are_on_the_same_host() -> None:
    assert host_of("0.0.0.0:50051") == "0.0.0.0"
    assert host_of("[::1]:50051") == "::1"
    assert host_of("unix:/run/router.sock") == "127.0.0.1"


def test_an_address_to_connect_to_has_the_port_that_the_system_picked() -> None:
    assert with_port("127.0.0.1:0", 1234) == "127.0.0.1:1234"
    assert with_port("[::1]:0", 1234) == "[::1]:1234"
    assert with_port("unix:/run/router.sock", 0) == "unix:/run/router.sock"
