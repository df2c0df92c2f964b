"""The synchronous client: AsyncClient's methods, run on the background event loop."""

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from pagewire.async_client import MAX_MESSAGE_BYTES, AsyncClient
from pagewire.event_loop import background_loop
from pagewire.retry import RetryPolicy

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    @functools.wraps(method)
    def call(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return background_loop().run(method(self._client, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate["Client", P], Generator[T, None, None]]:
    @functools.wraps(method)
    def call(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        return background_loop().iterate(method(self._client, *args, **kwargs))

    return call


class Client:
    """Talks to a pagewire server and waits for its answers. Thread-safe. Arguments and errors: AsyncClient's."""

    def __init__(
        self,
        target: str | Sequence[str] = "localhost:50051",
        *,
        tls: bool = False,
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._client = AsyncClient(
            target,
            tls=tls,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            credentials=credentials,
            api_key=api_key,
            timeout_s=timeout_s,
            retry=retry,
            max_message_bytes=max_message_bytes,
        )

    @property
    def target(self) -> str:
        """The server's address."""
        return self._client.target

    generate = _iterating(AsyncClient.generate)
    complete = _blocking(AsyncClient.complete)
    chat = _blocking(AsyncClient.chat)
    complete_many = _blocking(AsyncClient.complete_many)
    beam_search = _blocking(AsyncClient.beam_search)
    beam_search_many = _blocking(AsyncClient.beam_search_many)
    tokenize = _blocking(AsyncClient.tokenize)
    detokenize = _blocking(AsyncClient.detokenize)
    get_model = _blocking(AsyncClient.get_model)
    health = _blocking(AsyncClient.health)
    close = _blocking(AsyncClient.close)

    def close_later(self) -> None:
        """Closes the client like close, but does not wait."""
        background_loop().start(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
