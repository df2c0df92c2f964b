"""JSON Web Tokens: who is let in, what is refused, and keys that change under a running router."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from pagewire.v1 import inference_pb2
from pagewire_router.admission import reloaded_file
from pagewire_router.admission.json_web_tokens import CLOCK_SKEW_S, JsonWebTokens
from pagewire_router.admission.reloaded_file import FileError
from pagewire_router.errors import Unauthenticated

ISSUER, AUDIENCE = "https://issuer.test", "pagewire"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P256 = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
SHORT = inference_pb2.GenerateRequest(
    token_ids=inference_pb2.TokenIds(ids=[5]), sampling_params=inference_pb2.SamplingParams(max_tokens=2)
)


def public(private: Any, **facts: str) -> dict[str, Any]:
    """The JSON Web Key of a private key's public part."""
    kinds: dict[Any, Any] = {RSA: RSAAlgorithm, OTHER_RSA: RSAAlgorithm, P256: ECAlgorithm, ED: OKPAlgorithm}
    return {**kinds[private].to_jwk(private.public_key(), as_dict=True), **facts}


KEYS = [
    public(RSA, kid="rsa"),
    public(P256, kid="ec"),
    public(ED, kid="ed"),
    {"kty": "oct", "k": "c2VjcmV0", "kid": "symmetric"},
]


def write(path: Path, *keys: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"keys": keys}))
    return path


def token(
    key: Any = RSA, algorithm: str = "RS256", kid: str | None = "rsa", without: str = "", **claims: object
) -> str:
    now = time.time()
    all_claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now + 60, "iat": now, **claims}
    all_claims.pop(without, None)
    return jwt.encode(all_claims, key, algorithm, headers=None if kid is None else {"kid": kid})


@pytest.fixture
def tokens(tmp_path: Path) -> JsonWebTokens:
    tokens = JsonWebTokens(str(write(tmp_path / "jwks.json", *KEYS)), ISSUER, AUDIENCE)
    tokens.read()
    return tokens


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA, "RS256", "rsa"), (RSA, "PS512", "rsa"), (P256, "ES256", "ec"), (ED, "EdDSA", "ed")],
)
def test_a_token_of_each_asymmetric_kind_says_whose_it_is(
    tokens: JsonWebTokens, key: object, algorithm: str, kid: str
) -> None:
    for _ in range(2):
        assert tokens.check(token(key, algorithm, kid)) == ("jwt:ada", "ada")


def test_clocks_may_differ_by_a_little(tokens: JsonWebTokens) -> None:
    now = time.time()
    assert tokens.check(token(exp=now - CLOCK_SKEW_S / 2))
    assert tokens.check(token(nbf=now + CLOCK_SKEW_S / 2))


def refused(tokens: JsonWebTokens, text: str) -> str:
    with pytest.raises(Unauthenticated) as error:
        tokens.check(text)
    assert "secret-in-a-claim" not in error.value.message
    return error.value.message


def test_what_is_not_valid_is_refused_without_a_word_of_what_it_says(tokens: JsonWebTokens) -> None:
    now = time.time()
    assert "expired" in refused(tokens, token(exp=now - 2 * CLOCK_SKEW_S))
    for wrong in (token(aud="secret-in-a-claim"), token(iss="secret-in-a-claim")):
        assert "another audience, or of another issuer" in refused(tokens, wrong)
    for claim in ("exp", "iss", "aud", "sub"):
        assert "lacks a claim" in refused(tokens, token(without=claim))
    assert "subject" in refused(tokens, token(sub=""))
    assert "subject" in refused(tokens, token(sub="x" * 300))
    for kid in ("unknown", None, "symmetric"):
        assert "not known here" in refused(tokens, token(kid=kid))
    for invalid in (
        token(OTHER_RSA),
        token(P256, "ES256", "rsa"),
        token(nbf=now + 1000),
        token()[:-4] + "AAAA",
        "a.b.c",
        "",
        "é.é.é",
        "." * 10_000,
    ):
        assert refused(tokens, invalid) in (
            "the token is not valid here",
            "the token names a key that is not known here",
        )


def encoded(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def test_a_public_key_is_no_shared_secret_and_no_signature_is_none(tokens: JsonWebTokens) -> None:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "eve", "exp": time.time() + 60}
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, b"secret"):
        for kid in ("rsa", "symmetric"):
            body = f"{encoded({'alg': 'HS256', 'typ': 'JWT', 'kid': kid})}.{encoded(claims)}"
            digest = hmac.new(secret, body.encode(), hashlib.sha256).digest()
            refused(tokens, f"{body}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}")
    refused(tokens, f"{encoded({'alg': 'none', 'kid': 'rsa'})}.{encoded(claims)}.")


def test_a_keys_own_algorithm_is_the_only_one(tmp_path: Path) -> None:
    tokens = JsonWebTokens(str(write(tmp_path / "k", public(RSA, kid="rsa", alg="PS256"))), ISSUER, AUDIENCE)
    tokens.read()
    assert tokens.check(token(RSA, "PS256"))
    refused(tokens, token(RSA, "RS256"))


def test_the_only_key_of_a_file_needs_no_id(tmp_path: Path) -> None:
    tokens = JsonWebTokens(str(write(tmp_path / "k", public(RSA))), ISSUER, AUDIENCE)
    tokens.read()
    assert tokens.check(token(kid=None))
    assert "not known" in refused(tokens, token(kid="rsa"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"keys": []}',
        '{"keys": 3}',
        "[1]",
        json.dumps({"keys": [KEYS[3]]}),
        json.dumps({"keys": [{"kty": 1}]}),
    ],
)
def test_a_file_without_usable_keys_is_refused_at_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(content)
    with pytest.raises(FileError, match=str(path)):
        JsonWebTokens(str(path), ISSUER, AUDIENCE).read()


async def test_keys_are_taken_over_when_the_file_changes(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloaded_file, "REREAD_S", 0.0)
    path = write(tmp_path / "jwks.json", public(RSA, kid="rsa"))
    (tmp_path / "keys").write_text("an-api-key batch\n")
    config = {
        "jwt_jwks": str(path),
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "api_keys": str(tmp_path / "keys"),
    }
    old, new = token(), token(OTHER_RSA, kid="new")
    async with serve(config=config) as router:

        async def is_let_in(credential: str) -> bool:
            metadata = (("authorization", f"Bearer {credential}"),)
            try:
                await router.stub.Complete(SHORT, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAUTHENTICATED:
                    raise
                return False
            return True

        assert [await is_let_in(each) for each in (old, new, "an-api-key", "a.b.c")] == [True, False, True, False]
        write(path, public(OTHER_RSA, kid="new"))
        assert [await is_let_in(each) for each in (old, new, "an-api-key")] == [False, True, True]
        path.write_text("{")
        assert await is_let_in(new), "the keys read before stay valid"
        assert {request.client for request in router.runner.requests} == {"jwt:ada", "key:batch"}
