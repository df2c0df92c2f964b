"""Grammars that are prepared and followed as a shard does it."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grammar_world import EOS, demo_source, outputs, prepare
from pagewire_shard.grammar.grammars import Grammars
from pagewire_shard.grammar.matcher import Matcher


@pytest.fixture(scope="session")
def grammars() -> Iterator[Grammars]:
    grammars = Grammars(num_threads=2)
    grammars.open(demo_source())
    yield grammars
    grammars.close()


@pytest.fixture
def start(grammars: Grammars) -> Callable[..., Matcher]:
    """`start(regex="a+")`: a matcher at the start of a grammar, which must be accepted."""

    def start(*, end_token_ids: tuple[int, ...] = (EOS,), **fields: Any) -> Matcher:
        asked = outputs(**fields)
        name = str(asked)
        prepared = prepare(grammars, name, asked)
        assert prepared.code is grpc.StatusCode.OK, prepared.message
        return grammars.matcher(name, end_token_ids)

    return start
