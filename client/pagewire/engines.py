"""vLLM's engines, on a server of their own: AsyncLLM streams answers, LLMEngine returns them step by step."""

import asyncio
import queue
from collections.abc import AsyncGenerator, Iterable
from types import TracebackType
from typing import Any, Self

from pagewire.assembly import Assembly
from pagewire.async_client import AsyncClient
from pagewire.batch import window_for
from pagewire.engine_args import EngineArgs
from pagewire.errors import AlreadyExists
from pagewire.event_loop import background_loop
from pagewire.events import Event
from pagewire.llm import LLM
from pagewire.metrics import Metric
from pagewire.outputs import RequestOutput
from pagewire.prompts import PromptLike, as_prompt, prompt_text
from pagewire.sampling_params import SamplingParams


class _Engine:
    """A server of one's own, and the requests to it that have not finished."""

    def __init__(self, model: str | None = None, **options: Any) -> None:
        """Arguments and errors: those of LLM."""
        self._llm = LLM(model, **options)
        self._assemblies: dict[str, Assembly] = {}

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, **_ignored: Any) -> Self:
        """Starts a server with these options."""
        return cls(engine_args.model, **engine_args.options)

    def get_tokenizer(self) -> Any:
        """See LLM.get_tokenizer."""
        return self._llm.get_tokenizer()

    def get_metrics(self) -> list[Metric]:
        """See LLM.get_metrics."""
        return self._llm.get_metrics()

    def shutdown(self) -> None:
        """Stops the server and waits for its end."""
        self._llm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def _assemble(self, request_id: str, prompt: PromptLike, params: SamplingParams) -> Assembly:
        if request_id in self._assemblies:
            raise AlreadyExists(f"a request with the id {request_id!r} is alive; choose another id")
        has_prompt_logprobs = params.prompt_logprobs is not None
        text = prompt_text(as_prompt(prompt))
        assembly = Assembly(request_id, text, params.output_kind, params.n, has_prompt_logprobs=has_prompt_logprobs)
        self._assemblies[request_id] = assembly
        return assembly

    def _events(
        self, client: AsyncClient, request_id: str, prompt: PromptLike, params: SamplingParams, priority: int
    ) -> AsyncGenerator[Event, None]:
        (salted,) = self._llm.salted([as_prompt(prompt)])
        params = self._llm.with_defaults(params)
        return client.generate(salted, params, request_id=request_id, priority=priority, return_prompt_token_ids=True)


class AsyncLLM(_Engine):
    """Streams answers within one event loop."""

    def __init__(self, model: str | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        self._client: AsyncClient | None = None

    async def generate(
        self,
        prompt: PromptLike,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        lora_request: None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields answers as sampling_params.output_kind says. Leaving the iteration cancels the request.

        Args:
            prompt: as LLM.generate takes it, or {"messages": [...]}.
            request_id: unique among the requests that are alive.
            priority: lower runs first.
            lora_request: must be None, as adapters are not served.
        """
        if self._client is None:
            self._client = AsyncClient(self._llm.client.target)
        assembly = self._assemble(request_id, prompt, sampling_params)
        events = self._events(self._client, request_id, prompt, sampling_params, priority)
        try:
            async for event in events:
                assembly.take(event)
                if (output := assembly.output()) is not None:
                    yield output
        finally:
            await events.aclose()
            del self._assemblies[request_id]


class LLMEngine(_Engine):
    """Runs requests and returns what is new of them, step by step. Not thread-safe."""

    def __init__(self, model: str | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        self._arrived: queue.SimpleQueue[tuple[str, Event | BaseException]] = queue.SimpleQueue()
        self._client: AsyncClient | None = None
        self._gate: asyncio.Semaphore | None = None
        self._error: BaseException | None = None
        """Why a request has failed, for the next step() to raise."""

    def add_request(
        self,
        request_id: str,
        prompt: PromptLike,
        params: SamplingParams,
        *,
        priority: int = 0,
        lora_request: None = None,
    ) -> None:
        """Begins a request. Arguments: see AsyncLLM.generate."""
        params.to_proto()  # Raises what is wrong here, and not in a later step.
        self._assemble(request_id, prompt, params)
        background_loop().start(self._run(request_id, prompt, params, priority))

    def step(self) -> list[RequestOutput]:
        """Waits until something has come, and returns what is new of each request. Raises PagewireError."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if not self._assemblies:
            return []
        changed: dict[str, Assembly] = {}
        self._take(self._arrived.get(), changed)
        while self._error is None and not self._arrived.empty():
            self._take(self._arrived.get(), changed)
        if self._error is not None and not changed:
            return self.step()
        for request_id in [request_id for request_id, assembly in changed.items() if assembly.is_finished]:
            del self._assemblies[request_id]
        outputs = [assembly.output() for assembly in changed.values()]
        return [output for output in outputs if output is not None]

    def _take(self, item: tuple[str, Event | BaseException], changed: dict[str, Assembly]) -> None:
        request_id, event = item
        assembly = self._assemblies.get(request_id)
        if assembly is None:  # It was aborted.
            return
        if isinstance(event, BaseException):
            del self._assemblies[request_id]
            self._error = event
        else:
            assembly.take(event)
            changed[request_id] = assembly

    def has_unfinished_requests(self) -> bool:
        """Whether there are requests whose end was not returned by step()."""
        return bool(self._assemblies) or self._error is not None

    def get_num_unfinished_requests(self) -> int:
        """The number of those requests."""
        return len(self._assemblies)

    def abort_request(self, request_ids: Iterable[str]) -> None:
        """Ends requests; nothing more is returned of them."""
        for request_id in request_ids:
            self._assemblies.pop(request_id, None)

    def reset_prefix_cache(self, **_ignored: Any) -> bool:
        """See LLM.reset_prefix_cache. Running requests go on with what they have."""
        return self._llm.reset_prefix_cache()

    async def _run(self, request_id: str, prompt: PromptLike, params: SamplingParams, priority: int) -> None:
        """Pumps the events of one request, with as many open as the server's queue takes."""
        try:
            if self._client is None or self._gate is None:
                self._client = AsyncClient(self._llm.client.target)
                self._gate = asyncio.Semaphore(window_for(await self._client.get_model()))
            async with self._gate:
                events = self._events(self._client, request_id, prompt, params, priority)
                try:
                    async for event in events:
                        if request_id not in self._assemblies:
                            break
                        self._arrived.put((request_id, event))
                finally:
                    await events.aclose()
        except Exception as error:  # step() raises it
            self._arrived.put((request_id, error))
