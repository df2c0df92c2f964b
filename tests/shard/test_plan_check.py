"""Plans that break the contract: refused by the name of what is wrong, and nothing of them is applied."""

import copy
import math
from collections.abc import Callable

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pagewire.parameter_table import MAX_BAD_WORDS
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.sampling_params import with_defaults
from pagewire_kernels.sample.columns import MAX_BAD_WORD_TOKENS
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_shard.errors import PlanRefused, RankRefused
from scheduling_world import VOCAB_SIZE, Rank, expected_output, make_request

LIMITS = GroupLimits(num_blocks=24, block_size=4, max_num_seqs=6, max_num_batched_tokens=40, max_model_len=32)
SAMPLING = with_defaults(inference_pb2.SamplingParams(seed=3))
STOP = shard_pb2.StopConditions(token_ids=[0], max_tokens=12)


def admit(seq_id: int, num_tokens: int = 9, **fields: object) -> shard_pb2.Admit:
    token_ids = [1 + i % 3 for i in range(num_tokens)]
    values = {"token_ids": token_ids, "num_prompt_tokens": num_tokens, "sampling_params": SAMPLING, "stop": STOP}
    return shard_pb2.Admit(seq_id=seq_id, **{**values, **fields})


def started(window: int = 1, eos_share: float = 0.0) -> Rank:
    """A shard with sequences 1 to 3, two steps old."""
    rank = Rank(LIMITS, eos_share, window, lazy=False)
    rank.take(
        shard_pb2.StepPlan(
            step=1, admits=[admit(1), admit(2), admit(3, 5)], run_seq_ids=[1, 2, 3], run_token_budgets=[9, 9, 5]
        )
    )
    rank.take(shard_pb2.StepPlan(step=2, run_seq_ids=[1, 2, 3], run_token_budgets=[1, 1, 1]))
    return rank


def good_plan() -> shard_pb2.StepPlan:
    """It forks, releases, admits and runs."""
    return shard_pb2.StepPlan(
        step=3,
        forks=[shard_pb2.Fork(parent_seq_id=1, child_seq_id=4, num_tokens=9, appended_token_ids=[2], seed=9)],
        release_seq_ids=[2],
        admits=[admit(5, 6)],
        run_seq_ids=[1, 4, 5],
        run_token_budgets=[1, 1, 6],
    )


def state(rank: Rank) -> object:
    """All that a plan may change; the tokens of earlier steps, which arrive with it, are no part of that."""
    engine, pool = rank.engine, rank.engine.pool
    sequences = {
        i: (s.slot, list(s.blocks), s.num_computed_tokens, s.num_tokens, s.stopped, s.has_run)
        for i, s in engine._sequences.items()
    }
    rows = copy.deepcopy(rank.runner.rows)
    return (
        sequences,
        list(engine._free_slots),
        engine._last_step,
        engine._highest_seq_id,
        engine._digest,
        list(pool._ref_counts),
        list(pool._free),
        dict(pool._index),
        rows,
        rank.runner.cache,
    )


Corruption = Callable[[shard_pb2.StepPlan], None]


def set_fork(**fields: object) -> Corruption:
    return lambda plan: [setattr(plan.forks[0], name, value) for name, value in fields.items()]


def set_admit(part: str = "", **fields: object) -> Corruption:
    def corrupt(plan: shard_pb2.StepPlan) -> None:
        target = getattr(plan.admits[0], part) if part else plan.admits[0]
        for name, value in fields.items():
            setattr(target, name, value)

    return corrupt


def extend(path: str, *values: object) -> Corruption:
    def corrupt(plan: shard_pb2.StepPlan) -> None:
        target = plan
        for name in path.split("."):
            target = target[int(name)] if name.isdigit() else getattr(target, name)
        target.extend(values)

    return corrupt


def bad_words(*words: list[int]) -> Corruption:
    return extend("admits.0.bad_words", *(inference_pb2.TokenIds(ids=word) for word in words))


def also_run(seq_id: int, budget: int = 1) -> Corruption:
    def corrupt(plan: shard_pb2.StepPlan) -> None:
        plan.run_seq_ids.append(seq_id)
        plan.run_token_budgets.append(budget)

    return corrupt


def bias(values: dict[int, float]) -> Callable[[shard_pb2.StepPlan], object]:
    return lambda plan: plan.admits[0].sampling_params.logit_bias.update(values)


CORRUPTIONS: dict[str, tuple[Corruption, str]] = {
    "step ahead": (lambda plan: setattr(plan, "step", 5), "step 5"),
    "step again": (lambda plan: setattr(plan, "step", 2), "step 2"),
    "fork of unknown": (set_fork(parent_seq_id=77), "fork of seq_id 77"),
    "fork of one forked here": (set_fork(parent_seq_id=4), "fork of seq_id 4"),
    "fork into a used id": (set_fork(child_seq_id=3), "not new"),
    "fork and admit of one id": (set_fork(child_seq_id=5), "not new"),
    "fork of what is not computed": (set_fork(num_tokens=25), "num_tokens 25"),
    "fork of more than can be": (set_fork(num_tokens=2**32 - 1), "num_tokens"),
    "fork shorter than the prompt": (set_fork(num_tokens=1), "prompt"),
    "fork appends too many": (extend("forks.0.appended_token_ids", *[1] * 100_000), "appended_token_ids"),
    "fork appends nothing": (lambda plan: plan.forks[0].ClearField("appended_token_ids"), "appended_token_ids"),
    "fork appends no token of ours": (extend("forks.0.appended_token_ids", VOCAB_SIZE), "vocabulary"),
    "many forks": (lambda plan: plan.forks.extend(plan.forks[0] for _ in range(7)), "forks"),
    "release of unknown": (extend("release_seq_ids", 77), "release_seq_ids: 77"),
    "release of what is admitted here": (extend("release_seq_ids", 5), "release_seq_ids: 5"),
    "release twice": (extend("release_seq_ids", 2), "release_seq_ids"),
    "a flood of releases": (extend("release_seq_ids", *[2] * 100_000), "release_seq_ids"),
    "admit of a used id": (set_admit(seq_id=1), "not new"),
    "admit without tokens": (lambda plan: plan.admits[0].ClearField("token_ids"), "num_prompt_tokens"),
    "admit of a token beyond the vocabulary": (extend("admits.0.token_ids", VOCAB_SIZE), "token_ids"),
    "admit of the largest token id": (extend("admits.0.token_ids", 2**32 - 1), "token_ids"),
    "admit too long": (extend("admits.0.token_ids", *[1] * 27), "max_model_len"),
    "admit with no prompt": (set_admit(num_prompt_tokens=0), "num_prompt_tokens"),
    "admit with more prompt than tokens": (set_admit(num_prompt_tokens=7), "num_prompt_tokens"),
    "admit with an adapter": (set_admit(adapter="a"), "adapter"),
    "admit with a grammar": (set_admit(grammar="g"), "grammar"),
    "stop token beyond the vocabulary": (extend("admits.0.stop.token_ids", VOCAB_SIZE), "stop.token_ids"),
    "stop token of the largest id": (extend("admits.0.stop.token_ids", 2**32 - 1), "stop.token_ids"),
    "many stop tokens": (extend("admits.0.stop.token_ids", *[1] * 64), "stop.token_ids"),
    "max_tokens": (set_admit("stop", max_tokens=2**32 - 1), "max_tokens"),
    "min_tokens": (set_admit("stop", min_tokens=33), "min_tokens"),
    "logprobs": (set_admit("sampling_params", logprobs=21), "sampling_params.logprobs"),
    "negative logprobs": (set_admit("sampling_params", logprobs=-1), "sampling_params.logprobs"),
    "top_k": (set_admit("sampling_params", top_k=-2), "sampling_params.top_k"),
    "no temperature": (lambda plan: plan.admits[0].sampling_params.ClearField("temperature"), "lacks temperature"),
    "no seed": (lambda plan: plan.admits[0].sampling_params.ClearField("seed"), "lacks seed"),
    "logprobs of the prompt": (set_admit("sampling_params", prompt_logprobs=21), "sampling_params.prompt_logprobs"),
    "bias of a token beyond the vocabulary": (bias({VOCAB_SIZE: 1.0}), "sampling_params.logit_bias"),
    "bias of the largest token id": (bias({2**32 - 1: 1.0}), "sampling_params.logit_bias"),
    "large bias": (bias({1: 100.5}), "sampling_params.logit_bias"),
    "bias that is no number": (bias({1: math.nan}), "sampling_params.logit_bias"),
    "allowed token beyond the vocabulary": (
        extend("admits.0.sampling_params.allowed_token_ids", 1, VOCAB_SIZE),
        "sampling_params.allowed_token_ids",
    ),
    "bad word beyond the vocabulary": (bad_words([1], [2, VOCAB_SIZE]), "bad_words"),
    "empty bad word": (bad_words([1], []), "bad_words"),
    "too many bad words": (bad_words(*[[1]] * (MAX_BAD_WORDS + 1)), "129 bad_words"),
    "too many tokens of bad words": (bad_words([1], [2] * MAX_BAD_WORD_TOKENS), "bad_words"),
    "a flood of biases": (bias(dict.fromkeys(range(1025), 1.0)), "sampling_params.logit_bias"),
    "an empty bad word": (extend("admits.0.bad_words", inference_pb2.TokenIds()), "bad_words holds an empty one"),
    "run of unknown": (also_run(77), "run_seq_ids: 77"),
    "run of what is released here": (also_run(2), "run_seq_ids: 2"),
    "run twice": (also_run(1), "twice"),
    "a flood of runs": (extend("run_seq_ids", *[1] * 100_000), "run_seq_ids"),
    "run without a budget": (extend("run_seq_ids", 3), "run_token_budgets"),
    "budget without a run": (extend("run_token_budgets", 3), "run_token_budgets"),
    "modes of some": (extend("run_modes", 1), "run_modes"),
    "scores": (extend("run_modes", 2, 1, 1), "run_modes"),
    "unknown modes": (extend("run_modes", 1, 7, 1), "run_modes"),
    "draft numbers of some": (extend("num_draft_tokens", 0), "num_draft_tokens"),
    "more drafts than are made": (extend("num_draft_tokens", 0, 1, 0), "num_draft_tokens 1 exceeds max_draft_tokens 0"),
}
for _name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
    _bad = [math.nan, math.inf, -math.inf, -2.5]
    _bad += (
        [1.5] if _name in ("top_p", "min_p") else [2.5] if _name in ("presence_penalty", "frequency_penalty") else []
    )
    _bad += [0.0] if _name in ("top_p", "repetition_penalty") else []
    for _value in _bad:
        CORRUPTIONS[f"{_name} {_value}"] = (set_admit("sampling_params", **{_name: _value}), _name)


def refusal_of(rank: Rank, plan: shard_pb2.StepPlan) -> PlanRefused:
    with pytest.raises(PlanRefused) as caught:
        rank.engine.launch(plan)
    return caught.value


def check_next_epoch(rank: Rank) -> None:
    """The tokens of a sequence in the next epoch are those it has where nothing ever went wrong."""
    rank.engine.begin_epoch(1)
    rank.engine.check_consistent()
    rank.engine.pool.check_whole()
    request = make_request([1 + i % 3 for i in range(9)], seed=3, max_tokens=12)
    tokens: list[int] = []
    plan = shard_pb2.StepPlan(step=1, admits=[admit(1)], run_seq_ids=[1], run_token_budgets=[9])
    while len(tokens) < 12:
        rank.take(plan)
        tokens.extend(rank.result().sampled_token_ids)
        plan = shard_pb2.StepPlan(step=plan.step + 1, run_seq_ids=[1], run_token_budgets=[1])
    assert tokens == expected_output(request, 0, LIMITS.max_model_len, 0.0)


def test_grammars_are_prepared_for_one_epoch() -> None:
    rank, plan = started(), shard_pb2.StepPlan(step=1, admits=[admit(1, grammar="g")])
    rank.new_epoch(1)
    rank.grammars.ready.add("g")
    rank.take(plan)
    rank.engine.end_epoch()
    refused = refusal_of(rank, plan)
    assert "grammar g is not ready" in refused.message
    assert isinstance(refused, RankRefused), "another rank may have prepared it"


def test_the_plan_is_good_before_it_is_corrupted() -> None:
    rank = started()
    rank.results.clear()
    rank.take(good_plan())
    assert list(rank.result().num_sampled_tokens) == [1, 1, 1]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupt_plan_is_refused_and_nothing_of_it_is_applied(name: str) -> None:
    corrupt, named = CORRUPTIONS[name]
    rank = started()
    rank.results.clear()
    plan = good_plan()
    corrupt(plan)
    before = copy.deepcopy(state(rank))
    refused = refusal_of(rank, plan)
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert named in refused.message
    assert len(refused.message) < 300
    assert state(rank) == before
    rank.engine.check_consistent()
    check_next_epoch(rank)


@pytest.mark.parametrize(
    ("plan", "code", "named"),
    [
        (
            shard_pb2.StepPlan(
                step=3,
                admits=[admit(5, 20, cache_salt="a"), admit(6, 21, cache_salt="b")],
                run_seq_ids=[5, 6],
                run_token_budgets=[20, 21],
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            "max_num_batched_tokens",
        ),
        (
            shard_pb2.StepPlan(step=3, admits=[admit(i) for i in range(5, 9)]),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "max_num_seqs",
        ),
    ],
    ids=["tokens", "slots"],
)
def test_a_plan_that_is_too_large_is_refused_whole(plan: shard_pb2.StepPlan, code: grpc.StatusCode, named: str) -> None:
    rank = started()
    rank.results.clear()
    before = copy.deepcopy(state(rank))
    refused = refusal_of(rank, plan)
    assert (refused.code, named in refused.message) == (code, True)
    assert state(rank) == before
    check_next_epoch(rank)


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("eos_share", [0.0, 0.5])
def test_a_shard_goes_on_after_refusals_as_one_that_has_met_none(window: int, eos_share: float) -> None:
    """Results, and thereby tokens, counts, free blocks and digests, are the same from then on; so is all state."""
    rank, twin = started(window, eos_share), started(window, eos_share)
    plans = [
        good_plan(),
        *(shard_pb2.StepPlan(step=i, run_seq_ids=[1, 4], run_token_budgets=[1, 1]) for i in range(4, 9)),
    ]
    for plan in plans:
        # Refused for its fields, for its tokens, for its slots.
        for name in CORRUPTIONS if plan.step == 3 else ():
            bad = copy.deepcopy(plan)
            CORRUPTIONS[name][0](bad)
            refusal_of(rank, bad)
        wide = copy.deepcopy(plan)
        wide.admits.extend(admit(seq_id, 30, cache_salt=str(seq_id)) for seq_id in (101, 102))
        wide.run_seq_ids.extend((101, 102))
        wide.run_token_budgets.extend((30, 30))
        assert "max_num_batched_tokens" in refusal_of(rank, wide).message
        crowded = copy.deepcopy(plan)
        crowded.admits.extend(admit(seq_id) for seq_id in range(101, 106))
        assert "max_num_seqs" in refusal_of(rank, crowded).message
        for shard in (rank, twin):
            shard.take(copy.deepcopy(plan))
            assert shard.results[-1].step == plan.step
            shard.results[-1].ClearField("timings")
        assert rank.results[-1] == twin.results[-1]
        assert state(rank) == state(twin)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_plan_is_refused_exactly_when_the_pool_has_too_few_blocks(data: st.DataObject) -> None:
    """Against the pool itself: a plan that is accepted never runs dry, one that is refused would have."""
    num_blocks = data.draw(st.integers(4, 16))
    limits = GroupLimits(num_blocks, block_size=2, max_num_seqs=6, max_num_batched_tokens=64, max_model_len=24)
    rank = Rank(limits, eos_share=0.0, window=1, lazy=False)
    roomy = Rank(GroupLimits(200, 2, 6, 64, 24), eos_share=0.0, window=1, lazy=False)
    next_id = 1
    alive: list[int] = []
    for step in range(1, 12):
        plan = shard_pb2.StepPlan(step=step)
        for seq_id in data.draw(st.lists(st.sampled_from(alive), unique=True, max_size=2)) if alive else []:
            parent = roomy.engine._sequences[seq_id]
            if len(alive) < 6 and data.draw(st.booleans()) and parent.num_computed_tokens >= parent.num_prompt_tokens:
                shared = min(parent.num_computed_tokens, len(parent.token_ids))
                plan.forks.add(parent_seq_id=seq_id, child_seq_id=next_id, num_tokens=shared, appended_token_ids=[1])
                alive.append(next_id)
                next_id += 1
            if data.draw(st.booleans()):
                plan.release_seq_ids.append(seq_id)
                alive.remove(seq_id)
        # They share prefixes with those before them in this plan.
        for _ in range(min(6 - len(alive), data.draw(st.integers(0, 3)))):
            plan.admits.append(admit(next_id, data.draw(st.integers(1, 10))))
            alive.append(next_id)
            next_id += 1
        for seq_id in data.draw(st.permutations(alive)):
            plan.run_seq_ids.append(seq_id)
            plan.run_token_budgets.append(data.draw(st.integers(1, 10)))
        roomy.take(plan)
        before = copy.deepcopy(state(rank))
        refused = None
        try:
            rank.take(plan)
        except PlanRefused as error:
            refused = error
        if refused is not None:
            assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            used = 200 - roomy.engine.pool.num_free
            assert used > num_blocks - 1 - len(plan.run_seq_ids), "it would have fitted, copies included"
            assert state(rank) == before
            return
        rank.engine.check_consistent()
