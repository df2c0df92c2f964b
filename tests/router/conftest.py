"""Small tokenizers trained on the spot, a runner that says what it is told, and a router that serves both."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
import tokenizers
from pagewire.v1 import inference_pb2, inference_pb2_grpc, shard_pb2
from pagewire_common.health_state import HealthState
from pagewire_common.histogram import Histogram
from pagewire_router.config import RouterConfig
from pagewire_router.errors import RouterError
from pagewire_router.request import Request
from pagewire_router.server import RouterServer
from prometheus_client import CollectorRegistry
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "Hello, my name is Ada and I like engines. The capital of France is Paris.",
    "The future of AI is what people make of it, naïve façade, Straße, ¿qué tal?",
    "你好，世界。日本語のテキストも少し。한국어 문장입니다.",
    "Emoji: 😀 👩‍👩‍👧 🇫🇷 é combining, and    spaces\n\nand lines\tand tabs.",
    "def f(x):\n    return x + 1  # code",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _files(backend: tokenizers.Tokenizer) -> dict[str, bytes]:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    return {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}


@pytest.fixture(scope="session")
def byte_level_files() -> dict[str, bytes]:
    """A byte-level BPE tokenizer as GPT-2's and Llama 3's, adding <s>; ids 0 <s>, 1 </s>."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.add_tokens(["<tool>"])
    return _files(backend)


@pytest.fixture(scope="session")
def byte_fallback_files() -> dict[str, bytes]:
    """A tokenizer of Llama 2's kind: ▁ for spaces, <0x00> to <0xFF> for what the pieces do not cover."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], limit_alphabet=60
    )
    backend.train_from_iterator(CORPUS, trainer)
    # Byte tokens are ordinary tokens of the model, not added ones.
    description = json.loads(backend.to_str())
    description["added_tokens"] = description["added_tokens"][:3]
    backend = tokenizers.Tokenizer.from_str(json.dumps(description))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _files(backend)


@pytest.fixture(scope="session")
def word_piece_files() -> dict[str, bytes]:
    """A tokenizer whose decoder puts spaces between tokens."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "<s>", "</s>"])
    backend.train_from_iterator(CORPUS, trainer)
    return _files(backend)


@dataclass
class FakeRunner:
    """A RequestRunner that answers each request with the tokens of a script, one at a time."""

    files: dict[str, bytes]
    script: Callable[[Request], list[int]]
    model: shard_pb2.ShardInfo = field(
        default_factory=lambda: shard_pb2.ShardInfo(
            model="tiny",
            model_digest=b"digest",
            architecture="LlamaForCausalLM",
            dtype="float32",
            vocab_size=500,
            max_model_len=256,
            max_num_seqs=64,
            max_logprobs=20,
            eos_token_ids=[1],
        )
    )
    collector: CollectorRegistry = field(default_factory=CollectorRegistry)
    histograms: tuple[Histogram, ...] = ()
    is_ready: bool = True
    num_waiting: int = 0
    step_s: float = 0.0
    refusal: RouterError | None = None
    with_logprobs: bool = False
    requests: list[Request] = field(default_factory=list)
    aborted: list[Request] = field(default_factory=list)
    drained: bool = False
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def state(self) -> HealthState:
        return HealthState.IDLE if self.is_ready else HealthState.FAILED

    async def start(self) -> None:
        pass

    async def wait_ready(self) -> None:
        while not self.is_ready:
            await asyncio.sleep(0.01)

    async def wait_failed(self) -> None:
        await asyncio.Event().wait()

    async def drain(self, grace_s: float) -> None:
        self.drained = True
        if self.tasks:
            await asyncio.wait(self.tasks.values(), timeout=grace_s)

    async def stop(self) -> None:
        for task in self.tasks.values():
            task.cancel()

    def submit(self, request: Request) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        task = asyncio.get_running_loop().create_task(self._run(request))
        self.tasks[id(request)] = task
        task.add_done_callback(lambda _: self.tasks.pop(id(request), None))

    def abort(self, request: Request) -> None:
        self.aborted.append(request)
        self.tasks[id(request)].cancel()

    async def _run(self, request: Request) -> None:
        params, sink = request.params, request.sink
        stops = set(params.stop_token_ids)
        live = set(request.sequence_indices)
        for number, token_id in enumerate(self.script(request)[: params.max_tokens], start=1):
            await asyncio.sleep(self.step_s)
            for index in sorted(live):
                if number <= len((request.received or {}).get(index, ())):
                    continue
                logprobs = None
                if params.logprobs is not None:
                    logprobs = [
                        shard_pb2.SequenceLogprobs(logprob=-0.5, rank=1, top_token_ids=[7], top_logprobs=[-0.5])
                    ]
                if sink.on_tokens(index, [token_id], logprobs):
                    reason, stop_token = inference_pb2.FINISH_REASON_STOP, None
                elif token_id in request.eos_token_ids or token_id in stops:
                    reason, stop_token = inference_pb2.FINISH_REASON_STOP, token_id if token_id in stops else None
                elif number == params.max_tokens:
                    reason, stop_token = inference_pb2.FINISH_REASON_LENGTH, None
                else:
                    continue
                live.discard(index)
                sink.on_finished(index, reason, stop_token, 3)
        for index in live:
            sink.on_finished(index, inference_pb2.FINISH_REASON_LENGTH, None, 0)


@dataclass
class Router:
    """A router under test and a client's view of it."""

    runner: FakeRunner
    server: RouterServer
    address: str
    channel: grpc.aio.Channel
    stub: inference_pb2_grpc.InferenceStub

    async def generate(self, **fields: object) -> list[inference_pb2.GenerateResponse]:
        """Every message of one Generate call."""
        return [response async for response in self.stub.Generate(inference_pb2.GenerateRequest(**fields))]


@pytest.fixture
def new_runner(byte_level_files: dict[str, bytes]) -> Callable[..., FakeRunner]:
    """Makes a runner that says the tokens from 40 on, unless told otherwise."""

    def make(**fields: object) -> FakeRunner:
        defaults = {"files": byte_level_files, "script": lambda r: list(range(40, 40 + r.params.max_tokens))}
        return FakeRunner(**{**defaults, **fields})

    return make


@pytest.fixture
def serve(new_runner: Callable[..., FakeRunner]) -> Callable[..., AbstractAsyncContextManager["Router"]]:
    """Serves a fake runner: `async with serve(script=...) as router`."""

    @asynccontextmanager
    async def start(
        script: Callable[[Request], list[int]] | None = None,
        config: dict[str, object] | None = None,
        **runner_fields: object,
    ) -> AsyncIterator[Router]:
        runner = new_runner(**({"script": script} if script else {}), **runner_fields)
        server = RouterServer(RouterConfig(shards=(), **{"listen": "127.0.0.1:0", **(config or {})}), runner)
        address = await server.start()
        await server.open()
        options = [("grpc.max_send_message_length", -1)]
        try:
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                yield Router(runner, server, address, channel, inference_pb2_grpc.InferenceStub(channel))
        finally:
            await server.stop()

    return start
