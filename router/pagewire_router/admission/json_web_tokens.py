"""JSON Web Tokens (RFC 7519) that an issuer has signed, checked with the public keys of a JWKS file (RFC 7517).

The algorithms are fixed by the kind of each key, whatever a token says of itself; none of them is symmetric, so that a
public key can never pass for a secret.
"""

import hashlib
import time
from typing import Any, NamedTuple

import jwt

from pagewire_router.admission.reloaded_file import ReloadedFile
from pagewire_router.caller import Identity
from pagewire_router.errors import Unauthenticated

CLOCK_SKEW_S = 30.0
"""By so much the clocks of issuer and router may differ."""
MAX_SUBJECT_CHARS = 256
MAX_CHECKED = 4096
"""Tokens whose check is remembered: a signature takes about 50 us."""
_ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("EdDSA",),
}
"""By the type of a key, or by its curve."""
_REQUIRED = ["exp", "iss", "aud", "sub"]


class _Key(NamedTuple):
    public: Any
    algorithms: tuple[str, ...]


_Keys = dict[str | None, _Key]
"""By key id. A key without an id is the only one of its file."""


class JsonWebTokens:
    """Checks the tokens of one issuer. Their subjects are the clients."""

    def __init__(self, jwks_path: str, issuer: str, audience: str) -> None:
        self._file = ReloadedFile(jwks_path, "JWT keys", _parse)
        self._issuer = issuer
        self._audience = audience
        self._checked: dict[bytes, tuple[Identity, float]] = {}
        """By digest of a token: whose it is, and until when, by time.time()."""
        self._checked_with: _Keys | None = None

    def read(self) -> None:
        """Reads the keys. Raises FileError."""
        self._file.read()

    def check(self, token: str) -> Identity:
        """Whose token it is. Raises Unauthenticated."""
        keys = self._file.value
        if keys is not self._checked_with or len(self._checked) >= MAX_CHECKED:
            self._checked, self._checked_with = {}, keys
        digest = hashlib.sha256(token.encode()).digest()
        known = self._checked.get(digest)
        if known is not None and time.time() < known[1]:
            return known[0]
        identity, expires_s = self._verify(token, keys)
        self._checked[digest] = identity, expires_s + CLOCK_SKEW_S
        return identity

    def _verify(self, token: str, keys: _Keys) -> tuple[Identity, float]:
        try:
            key = _find(keys, jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key=key.public,
                algorithms=list(key.algorithms),
                audience=self._audience,
                issuer=self._issuer,
                leeway=CLOCK_SKEW_S,
                options={"require": _REQUIRED},
            )
        # What these errors say may hold what the token says.
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired") from None
        except (jwt.InvalidAudienceError, jwt.InvalidIssuerError):
            raise Unauthenticated("the token is for another audience, or of another issuer") from None
        except jwt.MissingRequiredClaimError:
            raise Unauthenticated(f"the token lacks a claim; {', '.join(_REQUIRED)} are needed") from None
        except (jwt.InvalidTokenError, ValueError, TypeError):
            raise Unauthenticated("the token is not valid here") from None
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_CHARS:
            raise Unauthenticated(f"the token's subject is no text of 1 to {MAX_SUBJECT_CHARS} characters")
        return Identity(f"jwt:{subject}", subject), float(claims["exp"])


def _find(keys: _Keys, key_id: object) -> _Key:
    """The key that a token names. One that names none is of the only key. Raises Unauthenticated."""
    if key_id is None and len(keys) == 1:
        return next(iter(keys.values()))
    key = keys.get(key_id) if isinstance(key_id, str) else None
    if key is None:
        raise Unauthenticated("the token names a key that is not known here")
    return key


def _parse(content: bytes) -> _Keys:
    try:
        found = jwt.PyJWKSet.from_json(content.decode()).keys
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError):
        raise ValueError("it is no JSON Web Key Set with a key that can be used") from None
    keys: _Keys = {}
    for each in found:
        facts = each._jwk_data
        allowed = _ALGORITHMS.get(str(facts.get("crv", facts.get("kty"))), ())
        algorithms = tuple(name for name in allowed if facts.get("alg", name) == name)
        if algorithms and "d" not in facts and facts.get("use", "sig") == "sig":
            keys[each.key_id] = _Key(each.key, algorithms)
    if not keys:
        raise ValueError("there is no public RSA, EC or Ed25519 key for signatures in it")
    if None in keys and len(keys) > 1:
        raise ValueError("a key without an id (kid) is not the only one")
    return keys
