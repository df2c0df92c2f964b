"""What calls have to carry to be let in: an API key, or a JSON Web Token."""

from typing import Protocol

from pagewire_router.admission.api_keys import ApiKeys
from pagewire_router.caller import Identity
from pagewire_router.errors import Unauthenticated

SCHEME = "bearer"


class Tokens(Protocol):
    """Checks JSON Web Tokens. See json_web_tokens.py, which needs a library that few routers need."""

    def read(self) -> None:
        """Reads the keys. Raises FileError."""

    def check(self, token: str) -> Identity:
        """Whose token it is. Raises Unauthenticated."""


class Credentials:
    """Lets calls in that carry a known key, or a token that is valid here."""

    def __init__(self, keys: ApiKeys | None, tokens: Tokens | None) -> None:
        """None: calls are not let in by one. At least one of the two is given."""
        assert keys is not None or tokens is not None
        self._keys = keys
        self._tokens = tokens

    def read(self) -> None:
        """Reads the files. Raises FileError."""
        for each in (self._keys, self._tokens):
            if each is not None:
                each.read()

    def check(self, authorization: str) -> Identity:
        """Checks the value of an authorization header. Raises Unauthenticated."""
        scheme, _, given = authorization.strip().partition(" ")
        given = given.strip()
        if scheme.lower() != SCHEME or not given:
            what = "a token" if self._keys is None else "an API key"
            raise Unauthenticated(f"{what} is needed: send the metadata 'authorization: Bearer KEY'")
        identity = None if self._keys is None else self._keys.find(given)
        if identity is not None:
            return identity
        if self._tokens is not None and (self._keys is None or given.count(".") == 2):
            return self._tokens.check(given)
        raise Unauthenticated("the API key is not known here")
