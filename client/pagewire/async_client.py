"""The asynchronous client. Client and LLM are built on it."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
import grpc.aio

from pagewire import batch
from pagewire.beam_search import BeamSearchOutput, BeamSearchParams
from pagewire.call_span import call_span
from pagewire.channels import Connection
from pagewire.errors import InvalidRequest, PagewireError, Unavailable, from_rpc_error
from pagewire.events import Event
from pagewire.outputs import RequestOutput
from pagewire.prompts import (
    ChatMessage,
    ChatPrompt,
    ContentFormat,
    Prompt,
    PromptLike,
    TextPrompt,
    as_prompt,
    as_prompts,
    fill_tokenize,
    has_token_ids,
    prompt_text,
)
from pagewire.received import Received
from pagewire.retry import NEVER, PATIENT, Attempts, RetryPolicy
from pagewire.sampling_params import SamplingParams
from pagewire.servers import Server, Servers, split_targets
from pagewire.tls import channel_credentials
from pagewire.v1 import inference_pb2
from pagewire.wire import RequestOptions, build_request, decode_beams, decode_result

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

MAX_MESSAGE_BYTES = 64 << 20
HEALTH_TIMEOUT_S = 5.0
MAX_TIMEOUT_S = 1e8
"""Three years. Longer timeouts count as none, because gRPC's clock would overflow."""
INFERENCE = "pagewire.v1.Inference"
SHARD_LOSS_TOKEN = "shard_loss_token"
"""Metadata of an error that says that a shard was lost while it ran the request: what the next server is told of it."""


class AsyncClient:
    """Talks to a pagewire server. Use it within one event loop; close it, or use it as a context manager.

    Args:
        target: "host:port", "dns:///name:port" or "unix:PATH"; several of them, as a list or separated by commas, and a
            name with several addresses, are servers of which the client finds one that serves.
        tls: encrypts, and trusts the authorities that gRPC knows unless tls_ca names others.
        tls_ca: PEM file of the authorities that sign the server's certificate; implies tls.
        tls_cert: PEM file of a certificate to show, for servers that want one; implies tls.
        tls_key: PEM file of its private key.
        credentials: used instead of the four above, such as the result of grpc.ssl_channel_credentials().
        api_key: sent with every call as "authorization: Bearer ...".
        timeout_s: default timeout of each request; None: no limit.
        retry: when to send a request again if the server is full or unavailable.
        max_message_bytes: largest message to send or receive.

    All methods raise PagewireError, never an error of gRPC.
    """

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
        targets = split_targets(target)
        self.target = ",".join(targets)
        self._timeout_s = checked_timeout_s(timeout_s)
        self._retry = retry or RetryPolicy()
        self._metadata: Metadata = bearer(api_key)
        credentials = credentials or channel_credentials(tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key)
        self._servers = Servers(targets, credentials, max_message_bytes=max_message_bytes)

    async def generate(
        self,
        prompt: PromptLike,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str = "",
        model: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
        return_prompt_token_ids: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yields events as tokens are sampled. Leaving the iteration cancels the request.

        If the stream breaks because its server or the connection is lost, or the server stops, the request is resumed
        at whichever server answers, as `retry` says: events go on where they were, and Started is yielded once.

        Args:
            prompt: text, {"prompt": text}, token ids, {"prompt_token_ids": [...]} or {"messages": [...]}.
            request_id: unique among the requests that are alive; empty: the server picks one.
            priority: lower runs first.
            cache_salt: cached prefixes are shared only among requests of one salt.
            timeout_s: time until the last token; the server ends the request then.
        """
        options = RequestOptions(request_id, model, priority, cache_salt, add_special_tokens)
        request = build_request(
            as_prompt(prompt), sampling_params, options, return_prompt_token_ids=return_prompt_token_ids
        )
        request.resumes = True
        attempts = self._attempts(timeout_s)
        received = Received()
        while True:
            address = self.target
            try:
                await self._servers.look_up()
                with self._servers.lease() as connection, call_span(f"{INFERENCE}/Generate", self.target) as headers:
                    address = connection.address
                    metadata = (*self._metadata, *headers)
                    call = connection.generate(request, timeout=attempts.remaining_s(), metadata=metadata)
                    try:
                        # read() costs less per message than `async for` over the call.
                        while (event := await call.read()) is not grpc.aio.EOF:
                            if event is not None and received.take(cast("Event", event)):
                                yield cast("Event", event)
                        return
                    finally:
                        call.cancel()
            except (grpc.aio.AioRpcError, Unavailable) as exc:
                error = self._error(exc, address)
                if received.has_progressed(shard_loss_token=error.metadata.get(SHARD_LOSS_TOKEN, "")):
                    attempts.begin_anew()
                can_go_on = received.can_resume or not received.has_output
                delay_s = self._delay_s(error, address, attempts, can_go_on=can_go_on)
                received.fill(request)
            await asyncio.sleep(delay_s)

    async def complete(
        self,
        prompt: PromptLike,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str = "",
        model: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
        timeout_s: float | None = None,
    ) -> RequestOutput:
        """Returns the whole answer to one prompt when all its sequences have finished. Arguments: see generate."""
        options = RequestOptions(request_id, model, priority, cache_salt, add_special_tokens)
        return await self._complete(as_prompt(prompt), sampling_params, options, self._attempts(timeout_s))

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        sampling_params: SamplingParams | None = None,
        *,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormat = "auto",
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        request_id: str = "",
        model: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        timeout_s: float | None = None,
    ) -> RequestOutput:
        """Returns the next turn of a conversation.

        Args:
            messages: oldest first, as {"role": ..., "content": ...}, in the form of OpenAI's API; keys that the model's
                chat template reads, such as tool_calls, reach it as they are.
            chat_template: the name of one of the model's templates, or a Jinja template to use in their place, if the
                server takes those (--trust-request-chat-template).
            chat_template_content_format: form in which the template gets the content of messages: text ("string"), a
                list of parts ("openai"), or what it expects ("auto").
            add_generation_prompt: ends the prompt with the tokens that open the assistant's turn; None: True unless
                continue_final_message is set.
            continue_final_message: leaves the last message open, so that the model continues it.
            template_kwargs: further variables for the template.
            chat_template_kwargs: vLLM's name of template_kwargs; only one of them may be given.
            tools: JSON schema objects of the tools offered to the model.

        Further arguments: see generate. To stream a conversation, call generate with {"messages": [...]}.
        """
        prompt: ChatPrompt = {
            "messages": messages,
            "chat_template": chat_template,
            "chat_template_content_format": chat_template_content_format,
            "continue_final_message": continue_final_message,
            "template_kwargs": template_kwargs,
            "chat_template_kwargs": chat_template_kwargs,
            "tools": tools,
        }
        if add_generation_prompt is not None:
            prompt["add_generation_prompt"] = add_generation_prompt
        options = RequestOptions(request_id, model, priority, cache_salt)
        return await self._complete(as_prompt(prompt), sampling_params, options, self._attempts(timeout_s))

    async def complete_many(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        model: str | None = None,
        priority: int | Sequence[int] = 0,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
        window: int | None = None,
        on_output: Callable[[RequestOutput], None] | None = None,
    ) -> list[RequestOutput]:
        """Completes any number of prompts, in their order, without overrunning the server's queue.

        Args:
            sampling_params: one object for all prompts, or a list with one for each.
            priority: one number for all prompts, or a list with one for each.
            window: most requests to have open at a time; None: as many as the server's queue takes, at most 2,048.
            on_output: called with every answer as it comes, in the event loop.

        The first error ends the batch and is raised; the requests that are open then are cancelled.
        """
        listed = as_prompts(prompts)
        params = batch.one_for_each("sampling_params", listed, sampling_params)
        priorities = batch.one_for_each("priority", listed, priority)
        if window is not None and (not isinstance(window, int) or window < 1):
            raise InvalidRequest.of_field("window", f"{window!r} given, accepted: a whole number above 0, or None")
        if window is None:
            window = batch.window_for(await self.get_model()) if len(listed) > 1 else 1

        def complete(prompt: Prompt, params: SamplingParams | None, priority: int) -> Awaitable[RequestOutput]:
            options = RequestOptions("", model, priority, cache_salt, add_special_tokens)
            return self._complete(prompt, params, options, Attempts(PATIENT, None))

        return await batch.run_windowed(complete, list(zip(listed, params, priorities, strict=True)), window, on_output)

    async def beam_search(
        self,
        prompt: PromptLike,
        params: BeamSearchParams,
        *,
        request_id: str = "",
        model: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
        timeout_s: float | None = None,
    ) -> BeamSearchOutput:
        """Returns the most probable continuations of one prompt. Arguments: see generate."""
        options = RequestOptions(request_id, model, priority, cache_salt, add_special_tokens)
        return await self._beam_search(as_prompt(prompt), params, options, self._attempts(timeout_s))

    async def beam_search_many(
        self, prompts: PromptLike | Sequence[PromptLike], params: BeamSearchParams, *, window: int | None = None
    ) -> list[BeamSearchOutput]:
        """Searches for the continuations of any number of prompts, in their order, as complete_many completes them."""
        listed = as_prompts(prompts)
        if window is None:
            window = batch.window_for(await self.get_model()) if len(listed) > 1 else 1

        def search(prompt: Prompt) -> Awaitable[BeamSearchOutput]:
            return self._beam_search(prompt, params, RequestOptions(), Attempts(PATIENT, None))

        return await batch.run_windowed(search, [(prompt,) for prompt in listed], window)

    async def tokenize(self, prompt: str | TextPrompt | ChatPrompt, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of text or of a conversation, exactly as generate would make them."""
        request = inference_pb2.TokenizeRequest(add_special_tokens=add_special_tokens)
        fill_tokenize(request, prompt)
        response = await self._unary(
            f"{INFERENCE}/Tokenize", lambda c, **kwargs: c.inference.Tokenize(request, **kwargs)
        )
        return list(response.token_ids)

    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids."""
        try:
            request = inference_pb2.DetokenizeRequest(token_ids=token_ids, skip_special_tokens=skip_special_tokens)
        except (TypeError, ValueError) as exc:
            raise InvalidRequest.of_field("token_ids", f"{exc}; accepted: whole numbers from 0") from exc
        response = await self._unary(
            f"{INFERENCE}/Detokenize", lambda c, **kwargs: c.inference.Detokenize(request, **kwargs)
        )
        return str(response.text)

    async def get_model(self) -> inference_pb2.Model:
        """Returns a description of the served model and its limits."""
        request = inference_pb2.GetModelRequest()
        return await self._unary(f"{INFERENCE}/GetModel", lambda c, **kwargs: c.inference.GetModel(request, **kwargs))

    async def health(self) -> bool:
        """Returns whether a server would run a request now; False also if none answers."""
        try:
            await self._servers.look_up()
        except Unavailable:
            return False
        return any(await asyncio.gather(*(self._is_serving(server) for server in self._servers.all)))

    async def _is_serving(self, server: Server) -> bool:
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        def check(connection: Connection, **kwargs: Any) -> Awaitable[Any]:
            stub: Any = health_pb2_grpc.HealthStub(connection.channel)
            response: Awaitable[Any] = stub.Check(health_pb2.HealthCheckRequest(), **kwargs)
            return response

        try:
            attempts = Attempts(NEVER, HEALTH_TIMEOUT_S)
            response = await self._unary("grpc.health.v1.Health/Check", check, attempts, server)
        except PagewireError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Closes the connections; requests that are open are cancelled."""
        await self._servers.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _complete(
        self, prompt: Prompt, params: SamplingParams | None, options: RequestOptions, attempts: Attempts
    ) -> RequestOutput:
        request = build_request(prompt, params, options, return_prompt_token_ids=not has_token_ids(prompt))
        result = await self._unary(
            f"{INFERENCE}/Complete", lambda c, **kwargs: c.inference.Complete(request, **kwargs), attempts
        )
        return decode_result(result, prompt, request)

    async def _beam_search(
        self, prompt: Prompt, params: BeamSearchParams, options: RequestOptions, attempts: Attempts
    ) -> BeamSearchOutput:
        if not isinstance(params, BeamSearchParams):
            accepted = "accepted: BeamSearchParams"
            raise InvalidRequest.of_field("params", f"a {type(params).__name__} given, {accepted}")
        # The server tells the prompt's tokens as it uses them: it may have truncated them.
        request = build_request(prompt, params, options, return_prompt_token_ids=True)
        result = await self._unary(
            f"{INFERENCE}/Complete", lambda c, **kwargs: c.inference.Complete(request, **kwargs), attempts
        )
        token_ids = list(result.started.prompt_token_ids)
        text = None
        if params.detokenize:
            text = result.started.prompt_text if result.started.HasField("prompt_text") else prompt_text(prompt)
            if text is None or params.truncate_prompt_tokens is not None:
                text = await self.detokenize(token_ids, skip_special_tokens=params.skip_special_tokens)
        return decode_beams(result, token_ids, text, keeps_last=params.include_stop_str_in_output)

    async def _unary(
        self,
        method: str,
        call: Callable[..., Awaitable[T]],
        attempts: Attempts | None = None,
        server: Server | None = None,
    ) -> T:
        """Makes a call that has one response, and repeats it as the retry policy says.

        Args:
            method: full name of the method, for traces.
            call: starts the call, given a connection and gRPC's own options.
            server: the server to ask; None: any.
        """
        attempts = attempts or self._attempts(None)
        while True:
            address = self.target
            try:
                await self._servers.look_up()
                with self._servers.lease(server) as connection, call_span(method, self.target) as headers:
                    address = connection.address
                    metadata = (*self._metadata, *headers)
                    return await call(connection, timeout=attempts.remaining_s(), metadata=metadata)
            except (grpc.aio.AioRpcError, Unavailable) as exc:
                delay_s = self._delay_s(self._error(exc, address), address, attempts)
            await asyncio.sleep(delay_s)

    def _error(self, exc: "grpc.aio.AioRpcError | Unavailable", address: str) -> PagewireError:
        """The error of a failed attempt at an address."""
        if isinstance(exc, Unavailable):
            return exc
        error = from_rpc_error(exc, address)
        error.__cause__ = exc
        return error

    def _delay_s(self, error: PagewireError, address: str, attempts: Attempts, *, can_go_on: bool = True) -> float:
        """How long to wait after a failed attempt at an address. Raises its error if that is final."""
        delay_s = attempts.delay_s(error) if can_go_on else None
        if delay_s is None:
            raise error
        return 0.0 if self._servers.on_failed(address, error) else delay_s

    def _attempts(self, timeout_s: float | None) -> Attempts:
        return Attempts(self._retry, self._timeout_s if timeout_s is None else checked_timeout_s(timeout_s))


def checked_timeout_s(timeout_s: float | None) -> float | None:
    """Returns a timeout as gRPC takes it; None: no limit. Raises InvalidRequest if it is not a number of seconds."""
    try:
        seconds = None if timeout_s is None else float(timeout_s)
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(timeout_s, str | bytes) or (seconds is not None and math.isnan(seconds)):
        raise InvalidRequest.of_field("timeout_s", f"{timeout_s!r} given, accepted: seconds, or None")
    return None if seconds is None or seconds > MAX_TIMEOUT_S else seconds


def bearer(api_key: str | None) -> Metadata:
    """Returns the metadata that carries an API key. Raises InvalidRequest if the key cannot be sent."""
    if not api_key:
        return ()
    if not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()):
        raise InvalidRequest.of_field("api_key", "has characters that cannot be sent; accepted: printable ASCII")
    return (("authorization", f"Bearer {api_key}"),)
