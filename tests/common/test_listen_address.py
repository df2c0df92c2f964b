"""Which addresses only this machine reaches."""

import pytest
from pagewire_common.listen_address import is_local


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
