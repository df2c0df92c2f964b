"""A request whose stream broke goes on exactly where its client had it, whatever had been received."""

import random
from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from pagewire.v1 import inference_pb2 as pb
from pagewire.v1 import shard_pb2
from pagewire_router.admission.resume import prompt_digest, resume_request
from pagewire_router.beams.search import BeamSettings
from pagewire_router.output.output_buffer import OutputBuffer
from pagewire_router.output.prompt_output import PromptOutput
from pagewire_router.output.sequence_output import Delta
from pagewire_router.request import Request
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_router.text.tokenizer import Tokenizer

EOS = 1
STOP_TOKEN = 30


class Silent:
    def notify(self) -> None:
        pass

    def notify_now(self) -> None:
        pass


class World:
    """One request with given outputs, served by as many buffers as it takes."""

    def __init__(self, tokenizer: Tokenizer, rng: random.Random) -> None:
        self.tokenizer = tokenizer
        self.rng = rng
        vocabulary = range(2, 280)
        self.prompt = rng.choices(vocabulary, k=rng.randint(1, 6))
        n, max_tokens = rng.choice((1, 1, 3)), rng.randint(1, 24)
        # A few tokens come again and again, so that stop strings and split characters do.
        some = rng.sample(vocabulary, 12)
        self.tokens = [self._output(some, max_tokens) for _ in range(n)]
        self.params = pb.SamplingParams(
            n=n,
            max_tokens=max_tokens,
            min_tokens=rng.choice((0, 0, 3)),
            seed=5,
            temperature=1.0,
            detokenize=True,
            skip_special_tokens=rng.random() < 0.5,
            include_stop_str_in_output=rng.random() < 0.3,
            stop_token_ids=[STOP_TOKEN],
        )
        if rng.random() < 0.6:
            for index in range(n):
                text = self.tokenizer.decode(self.tokens[index], skip_special_tokens=True)
                at = rng.randrange(len(text) + 1)
                self.params.stop.append(text[at : at + rng.randint(1, 4)] or "zz")
        if rng.random() < 0.5:
            self.params.logprobs = 1
        self.has_scores = rng.random() < 0.3
        if self.has_scores:
            self.params.prompt_logprobs = 0

    def _output(self, some: list[int], max_tokens: int) -> list[int]:
        tokens = [self.rng.choice(some) for _ in range(max_tokens)]
        if self.rng.random() < 0.4:
            tokens[self.rng.randrange(max_tokens)] = self.rng.choice((EOS, STOP_TOKEN))
        return tokens

    def buffer(self) -> tuple[Request, OutputBuffer]:
        def new_detokenizer():
            return self.tokenizer.detokenizer(
                self.prompt,
                skip_special_tokens=self.params.skip_special_tokens,
                spaces_between_special_tokens=True,
            )

        prompt = PromptOutput(self.prompt, self.tokenizer.piece) if self.has_scores else None
        output = OutputBuffer(
            self.params, len(self.prompt), (EOS,), new_detokenizer, Silent(), self.tokenizer.piece, prompt
        )
        request = Request("r", self.prompt, self.params, output, 0.0, eos_token_ids=(EOS,))
        return request, output

    def run(self, request: Request, output: OutputBuffer, take: Callable[[], None]) -> None:
        """Does what a shard does, from where the request is; takes output now and then."""
        group = SequenceGroup(request, 1000)
        if group.next_scored_position:
            for position in range(group.next_scored_position, len(self.prompt)):
                logprob = -float(position)
                output.on_prompt_scores(shard_pb2.PromptScores(logprobs=[logprob], ranks=[1]))
                take()
        live = {sequence.index: len(sequence.token_ids) - len(self.prompt) for sequence in group.sequences}
        while live:
            for index in list(live):
                position = live[index]
                token = self.tokens[index][position]
                live[index] += 1
                logprobs = [shard_pb2.SequenceLogprobs(logprob=-1 / (3 + position), rank=1)]
                stopped = output.on_tokens(index, [token], logprobs if self.params.HasField("logprobs") else None)
                if stopped or token in (EOS, STOP_TOKEN):
                    by_token = STOP_TOKEN if token == STOP_TOKEN and not stopped else None
                    output.on_finished(index, pb.FINISH_REASON_STOP, by_token, 0)
                elif live[index] == self.params.max_tokens:
                    output.on_finished(index, pb.FINISH_REASON_LENGTH, None, 0)
                else:
                    continue
                del live[index]
            if self.rng.random() < 0.7:
                take()
        while not output.is_all_taken:
            take()
        take()


class Client:
    """What a client has, and what it says of it. Written anew here: the Python package has its own."""

    def __init__(self, prompt: list[int]) -> None:
        self.text: dict[int, bytes] = {}
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[pb.TokenLogprobs]] = {}
        self.scores: list[pb.TokenLogprobs] = []
        self.finished: dict[int, pb.Finished] = {}
        self._prompt_digest = prompt_digest(prompt)

    def take(self, output) -> None:
        if isinstance(output, Delta):
            self.text[output.index] = self.text.get(output.index, b"") + output.text.encode()
            self.tokens.setdefault(output.index, []).extend(output.token_ids)
            self.logprobs.setdefault(output.index, []).extend(output.logprobs)
        elif isinstance(output, pb.Finished):
            assert output.index not in self.finished
            self.finished[output.index] = output
        else:
            assert output.first_position == 1 + len(self.scores)
            self.scores.extend(output.logprobs)

    def resume(self) -> pb.Resume:
        return pb.Resume(
            model_digest=b"digest",
            prompt_digest=self._prompt_digest,
            seed=5,
            num_prompt_logprobs=len(self.scores),
            sequences=[
                pb.ResumedSequence(
                    index=index,
                    token_ids=self.tokens.get(index, []),
                    text_bytes_received=len(self.text.get(index, b"")),
                    finished=index in self.finished,
                    cumulative_logprob=sum(entry.logprob for entry in self.logprobs.get(index, [])),
                )
                for index in self.tokens.keys() | self.finished.keys() | self.text.keys()
            ],
        )

    def everything(self) -> tuple[object, ...]:
        return self.text, self.tokens, self.logprobs, self.scores, self.finished


class Broken(Exception):
    """The stream has broken."""


def deliver(world: World, request: Request, output: OutputBuffer, client: Client, num_outputs: int) -> None:
    """Serves the client up to a number of outputs. Raises Broken there."""
    left = num_outputs

    def take() -> None:
        nonlocal left
        for taken in output.take():
            if left == 0:
                raise Broken
            left -= 1
            client.take(taken)

    world.run(request, output, take)


@pytest.mark.parametrize("files", ["byte_level_files", "byte_fallback_files", "word_piece_files"])
async def test_a_resumed_stream_goes_on_exactly_where_it_was(files, request):
    """Cut three times at random outputs; also between text and its end, within characters and within stop strings."""
    tokenizer = Tokenizer(request.getfixturevalue(files), 500)
    num_cuts = num_ended_at_once = 0
    for seed in range(60):
        world = World(tokenizer, random.Random(seed))
        whole = Client(world.prompt)
        deliver(world, *world.buffer(), whole, 10**9)
        client = Client(world.prompt)
        for cut in (*(world.rng.randrange(12) for _ in range(3)), 10**9):
            asked, output = world.buffer()
            await resume_request(client.resume(), asked, output)
            num_ended_at_once += output.is_done and len(client.finished) < world.params.n
            try:
                if output.is_done:
                    for taken in output.take()[:cut]:
                        client.take(taken)
                else:
                    deliver(world, asked, output, client, cut)
            except Broken:
                num_cuts += 1
        assert client.everything() == whole.everything(), seed
    assert num_cuts > 50
    assert num_ended_at_once > 2


async def test_a_beam_search_runs_again_and_tells_what_was_not_received(byte_level_files):
    params = pb.SamplingParams(n=2, max_tokens=4, detokenize=True)
    tokenizer = Tokenizer(byte_level_files, 500)

    def new_detokenizer():
        return tokenizer.detokenizer([40], skip_special_tokens=True, spaces_between_special_tokens=True)

    class Beam:
        def __init__(self, tokens: list[int]) -> None:
            self.tokens, self.cumulative_logprob = tokens, -1.0

        def token_ids(self) -> list[int]:
            return list(self.tokens)

    class Found:
        def __init__(self, tokens: list[int]) -> None:
            self.beam, self.is_stopped, self.score = Beam(tokens), False, -0.5

    found = [Found([50, 51, 52, 53]), Found([60, 61, 62, 63])]
    beams = BeamSettings.__new__(BeamSettings)

    async def resumed(*sequences: pb.ResumedSequence) -> OutputBuffer:
        output = OutputBuffer(params, 1, (1,), new_detokenizer, Silent(), tokenizer.piece)
        request = Request("r", [40], params, output, 0.0, beams=beams)
        await resume_request(pb.Resume(sequences=sequences), request, output)
        output.on_beams(found, 0)
        return output

    whole = (await resumed()).take()
    assert [type(part) for part in whole] == [Delta, pb.Finished] * 2
    first = pb.ResumedSequence(index=0, finished=True)
    assert (await resumed(first)).take() == whole[2:]
    received = pb.ResumedSequence(index=1, token_ids=[60, 61], text_bytes_received=1)
    (rest, end) = (await resumed(first, received)).take()
    assert (rest.token_ids, rest.text, end) == ([62, 63], whole[2].text[1:], whole[3])
    other = await resumed(pb.ResumedSequence(index=1, token_ids=[60, 99]))
    assert "other results" in str(other.error)


PROMPT = [40, 41]
GOOD = {"model_digest": b"digest", "prompt_digest": prompt_digest(PROMPT), "seed": 3}


def violations(error: grpc.aio.AioRpcError) -> list[str]:
    for packed in rpc_status.from_call(error).details:
        if packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            return [v.field for v in error_details_pb2.BadRequest.FromString(packed.value).field_violations]
    return []


async def ask(router, resume: pb.Resume, **params: object) -> list[pb.GenerateResponse]:
    sampling_params = pb.SamplingParams(**{"max_tokens": 4, "n": 2, "temperature": 1.0, **params})
    return await router.generate(token_ids=pb.TokenIds(ids=PROMPT), sampling_params=sampling_params, resume=resume)


async def test_a_resumed_request_is_served_from_where_it_was(serve):
    async with serve() as router:
        first = pb.ResumedSequence(index=0, token_ids=[40, 41], text_bytes_received=0)
        responses = await ask(router, pb.Resume(**GOOD, sequences=[first, {"index": 1, "finished": True}]))
    started = responses[0].started
    assert (started.seed, started.num_prompt_tokens, started.prompt_digest) == (3, 2, GOOD["prompt_digest"])
    assert [r.WhichOneof("event") for r in responses][-1] == "finished"
    assert {r.delta.index for r in responses[1:]} == {0}
    assert [t for r in responses for t in r.delta.token_ids] == [42, 43]
    assert responses[-1].finished.usage.completion_tokens == 4


async def test_a_request_of_which_only_the_end_was_lost_takes_no_shard(serve):
    async with serve() as router:
        all_of_it = [{"index": 0, "token_ids": [40, 41, 42, 43]}, {"index": 1, "finished": True}]
        responses = await ask(router, pb.Resume(**GOOD, sequences=all_of_it))
        nothing = [{"index": 0, "finished": True}, {"index": 1, "finished": True}]
        (started,) = await ask(router, pb.Resume(**GOOD, sequences=nothing))
        assert router.runner.requests == []
    assert [r.WhichOneof("event") for r in responses] == ["started", "delta", "finished"]
    assert responses[1].delta.text
    assert responses[2].finished.finish_reason == pb.FINISH_REASON_LENGTH
    assert started.HasField("started")


REFUSED = {
    "model": ({"model_digest": b"other"}, {}, "MODEL_CHANGED", []),
    "no model": ({"model_digest": b""}, {}, "MODEL_CHANGED", []),
    "prompt": ({"prompt_digest": b"other"}, {}, "PROMPT_CHANGED", []),
    "seed": ({}, {"seed": 4}, "", ["resume.seed"]),
    "index": ({"sequences": [{"index": 2}]}, {}, "", ["resume.sequences[0].index"]),
    "index twice": ({"sequences": [{"index": 1}] * 2}, {}, "", ["resume.sequences[1].index"]),
    "too many": ({"sequences": [{"index": 0}] * 3}, {}, "", ["resume.sequences"]),
    "too long": ({"sequences": [{"token_ids": [40] * 5}]}, {}, "", ["resume.sequences[0].token_ids"]),
    "token": ({"sequences": [{"token_ids": [40, 500]}]}, {}, "", ["resume.sequences[0].token_ids[1]"]),
    "text": (
        {"sequences": [{"token_ids": [40], "text_bytes_received": 99}]},
        {},
        "",
        ["resume.sequences[0].text_bytes_received"],
    ),
    "scores": ({"num_prompt_logprobs": 2}, {}, "", ["resume.num_prompt_logprobs"]),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_cannot_be_continued_is_refused_by_name(serve, case):
    fields, params, reason, fields_at_fault = REFUSED[case]
    async with serve() as router:
        with pytest.raises(grpc.aio.AioRpcError) as info:
            await ask(router, pb.Resume(**{**GOOD, **fields}), **params)
        assert router.runner.requests == []
    error = info.value
    expected = grpc.StatusCode.FAILED_PRECONDITION if reason else grpc.StatusCode.INVALID_ARGUMENT
    assert error.code() == expected, error.details()
    assert violations(error) == fields_at_fault
    details = rpc_status.from_call(error).details
    reasons = [error_details_pb2.ErrorInfo.FromString(d.value).reason for d in details if "ErrorInfo" in d.type_url]
    assert reasons == [reason or "INVALID_REQUEST"]


async def test_complete_has_nothing_to_resume(serve):
    async with serve() as router:
        request = pb.GenerateRequest(text="x", resume=pb.Resume(**GOOD))
        with pytest.raises(grpc.aio.AioRpcError) as info:
            await router.stub.Complete(request)
    assert violations(info.value) == ["resume"]
