"""A router with an HTTP front over a runner that says what it is told."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import anthropic
import openai
import pytest
from pagewire_router.text.tokenizer import Tokenizer


@dataclass
class Front:
    """A served front, and its router."""

    router: object
    base_url: str

    @property
    def runner(self):
        return self.router.runner

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.base_url.rpartition("/")[2].rpartition(":")
        return host, int(port)

    @property
    def connections(self):
        """The server's side of the connections that are open."""
        return list(self.router.server._http_front._server._server.server_state.connections)

    def openai(self, **options) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**{"base_url": f"{self.base_url}/v1", "api_key": "none", "max_retries": 0, **options})

    def anthropic(self, **options) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(**{"base_url": self.base_url, "api_key": "none", "max_retries": 0, **options})


@pytest.fixture
def serve_http(serve) -> Callable[..., AbstractAsyncContextManager[Front]]:
    """Serves a fake runner over HTTP too: `async with serve_http(script=...) as front`."""

    @asynccontextmanager
    async def start(config: dict[str, object] | None = None, **options: object) -> AsyncIterator[Front]:
        async with serve(config={"http_port": 0, **(config or {})}, **options) as router:
            scheme = "https" if (config or {}).get("tls_cert") else "http"
            yield Front(router, f"{scheme}://{router.server.http_address}")

    return start


@pytest.fixture
def saying(serve_http, byte_level_files):
    """Serves a model that says a text and ends."""

    def start(text: str, **config: object) -> AbstractAsyncContextManager[Front]:
        token_ids = Tokenizer(byte_level_files, 500).encode_now(text, add_special_tokens=False)
        return serve_http(script=lambda request: [*token_ids, 1], config=config)

    return start
