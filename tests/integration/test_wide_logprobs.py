"""Log-probabilities of the whole vocabulary: exact, beside others, and no more in one result than there is room for."""

from functools import partial

import pytest
import torch
from pagewire.v1 import shard_pb2
from pagewire_router.scheduling import residents, scheduler, sequence
from pagewire_shard.execution.gpu_runner import GraphRunner
from pagewire_shard.execution.graph_capture import CpuCapturer
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.host_transfer import CpuDownlink, CpuUplink
from pagewire_shard.sampling import logprobs as gathering
from random_models import VOCAB_SIZE
from scheduling_world import output
from subject import Subject

NUM_TOKENS = 6
SIZES = GraphSizes((2, 8, 16), ((16, 8), (64, 16), (512, 16)))
WITH_GRAPHS = partial(GraphRunner, uplink=CpuUplink(), downlink=CpuDownlink(), capturer=CpuCapturer(), sizes=SIZES)


def check(entries: list[shard_pb2.SequenceLogprobs], tokens: list[int], logits: torch.Tensor, num_top: int) -> None:
    """The entries are those of the logits."""
    assert len(entries) == len(tokens)
    for entry, token, row in zip(entries, tokens, logits.log_softmax(-1), strict=True):
        assert len(entry.top_token_ids) == len(entry.top_logprobs) == num_top
        found = torch.tensor(entry.top_logprobs)
        torch.testing.assert_close(found, row[entry.top_token_ids[:]], atol=1e-4, rtol=1e-4)
        assert found.diff().le(0).all()
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
        if num_top == VOCAB_SIZE:
            assert sorted(entry.top_token_ids) == list(range(VOCAB_SIZE))
            assert entry.top_token_ids[entry.rank - 1] == token


@pytest.mark.parametrize("runner", [{}, {"make_runner": WITH_GRAPHS}], ids=["plain", "graphs"])
def test_rows_that_ask_for_few_for_many_and_for_none(
    llama: Subject, runner: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "FEW", 50)
    world = llama.world(window=2, **runner)
    options = [{"logprobs": num} for num in (3, VOCAB_SIZE, 0, 100, 50)] + [{}]
    groups = [
        world.submit(expected.prompt, temperature=0.0, max_tokens=NUM_TOKENS, **some)
        for expected, some in zip(llama.greedy, options, strict=False)
    ]
    assert len(groups) >= 4
    world.run()
    for group, expected, some in zip(groups, llama.greedy, options, strict=False):
        tokens = output(group)
        assert tokens == expected.tokens[:NUM_TOKENS]
        if some:
            check(world.logprobs[group.sequences[0]], tokens, expected.logits[:NUM_TOKENS], some["logprobs"])


def test_a_result_reports_no_more_than_there_is_room_for(llama: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests for many wait for each other; those for few do not wait."""
    room = 3 * VOCAB_SIZE
    monkeypatch.setattr(residents, "MAX_STEP_LOGPROBS", room)
    monkeypatch.setattr(sequence, "MANY_LOGPROBS", 20)
    world = llama.world(window=2, num_blocks=40)
    most = 0
    collect = world.engine.collect

    def watched(step: object) -> shard_pb2.StepResult:
        nonlocal most
        result = collect(step)
        most = max(most, sum(len(entry.top_token_ids) for entry in result.logprobs if len(entry.top_token_ids) > 20))
        return result

    monkeypatch.setattr(world.engine, "collect", watched)
    prompt = llama.greedy[1].prompt
    wide = [
        world.submit(prompt, temperature=1.0, seed=i, n=n, max_tokens=8, logprobs=VOCAB_SIZE)
        for i, n in enumerate((2, 1, 2, 3, 1))
    ]
    few = [world.submit(prompt, temperature=1.0, seed=i, max_tokens=8, logprobs=2) for i in range(4)]
    world.run()
    assert 0 < most <= room
    for group in (*wide, *few):
        num_top = group.request.params.logprobs
        for own in group.sequences:
            logits = llama.reference.answer(group.request, own.index).logits
            check(world.logprobs[own], own.token_ids[group.num_prompt_tokens :], logits, num_top)


def test_a_request_that_waits_for_room_in_results_does_not_keep_others_waiting(
    llama: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residents, "MAX_STEP_LOGPROBS", VOCAB_SIZE)
    monkeypatch.setattr(sequence, "MANY_LOGPROBS", 20)
    monkeypatch.setattr(scheduler, "MAX_PASSES", 2)
    world = llama.world()
    prompt = llama.greedy[0].prompt
    first, second, third = (world.submit(prompt, seed=i, max_tokens=60, logprobs=VOCAB_SIZE) for i in range(3))
    for i in range(8):
        few = world.submit(prompt, seed=i, max_tokens=3)
        for _ in range(5):
            world.step()
        assert few.is_finished, "it waits for log-probabilities that it does not want"
    assert first.is_running
    assert not second.is_running
    world.run()
    assert [len(output(group)) for group in (first, second, third)] == [60] * 3
