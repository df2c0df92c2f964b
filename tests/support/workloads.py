"""Workloads for a scheduler, drawn by Hypothesis as lists of actions, so that a failure shrinks to a few requests."""

from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st
from pagewire_common.cache_groups import PLAIN, STATES_PER_SEQUENCE, CacheGroup
from pagewire_router.beams.search import BeamSettings
from pagewire_router.errors import RequestTooLong
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.sequence import SequenceGroup
from scheduling_world import (
    EOS,
    FINISHED_BY_ITSELF,
    VOCAB_SIZE,
    World,
    expected_beams,
    expected_output,
    make_request,
    output,
    prompt_logprobs,
)

PREFIXES = ([1] * 14, [1, 2, 3, 4] * 3 + [1, 2])
"""Prompts begin with one of these, so that they share cached blocks."""


@dataclass(frozen=True)
class Submit:
    """A request arrives."""

    prompt: list[int]
    max_tokens: int = 1
    n: int = 1
    priority: int = 0
    deadline_in_s: float | None = None
    cache_salt: str = ""
    seed: int = 0
    grammar: str = ""
    beam_width: int = 0
    """0: it is no beam search."""
    prompt_logprobs: int | None = None


@dataclass(frozen=True)
class Steps:
    """So many steps run."""

    number: int


@dataclass(frozen=True)
class Abort:
    """A client goes away: the one of this request, counted round among all so far."""

    number: int


@dataclass(frozen=True)
class Draft:
    """Decoding rows verify so many draft tokens from now on."""

    num_draft_tokens: int


@dataclass(frozen=True)
class NewEpoch:
    """The plan stream breaks: plans in flight are lost, the shards forget all sequences and keep their blocks."""


@dataclass(frozen=True)
class LoseCache:
    """The shards' cached blocks are gone, and the router learns nothing of it: its guesses are too high."""


@dataclass(frozen=True)
class LoseCheckpoints:
    """The shards' checkpoints are gone, their blocks are not, and the router learns nothing of it."""


@dataclass(frozen=True)
class LoseMirror:
    """The router forgets what the shards have cached: its guesses are too low."""


Action = Submit | Steps | Abort | Draft | NewEpoch | LoseCache | LoseCheckpoints | LoseMirror


@dataclass(frozen=True)
class Workload:
    """A shard group and what happens to it."""

    limits: GroupLimits
    window: int
    """Plans in flight."""
    eos_share: float
    """How often the model ends a sequence."""
    max_draft_tokens: int
    max_grammar_delay: int
    """Most steps that a rank takes to prepare a grammar."""
    actions: list[Action] = field(default_factory=list)


@st.composite
def prompts(draw: st.DrawFn, max_prompt: int) -> list[int]:
    """A prompt that shares all but its last token with others."""
    prefix = draw(st.sampled_from(PREFIXES))[: draw(st.integers(1, max_prompt)) - 1]
    return [*prefix, draw(st.integers(1, 4))]


def actions(max_prompt: int, max_tokens: int, max_n: int, max_drafts: int) -> tuple[st.SearchStrategy[Action], ...]:
    """A request, and any other action."""
    submit = st.builds(
        Submit,
        prompts(max_prompt),
        st.sampled_from([max_tokens, max_tokens, 1, max(1, max_tokens // 2)]),
        st.integers(1, max_n),
        st.sampled_from([0, 0, 0, 1]),
        st.sampled_from([None, None, None, None, 20.0, 60.0]),
        st.sampled_from(["", "", "s"]),
        st.integers(0, 99),
        st.sampled_from(["", "", "", "a", "a", "b", "c", "dead", "bad", "slow"]),
        st.sampled_from([0, 0, 0, *range(1, max_n + 1)]),
        st.sampled_from([None, None, None, 0, 3]),
    )
    steps = st.builds(Steps, st.integers(1, 8))
    rare = [st.builds(Abort, st.integers(0, 9)), st.builds(Draft, st.integers(0, max_drafts)), st.just(NewEpoch())]
    rare += [st.just(LoseCache()), st.just(LoseMirror()), st.just(LoseCheckpoints())]
    return submit, st.one_of(*[steps] * 8, *rare)


CACHE_GROUPS = st.lists(
    st.builds(CacheGroup, st.one_of(st.just(0), st.integers(1, 12)), st.integers(1, 3)), min_size=1, max_size=3
).map(tuple)
"""Tables that keep all tokens and tables with windows, shorter than a block and longer, in any mixture."""


def blocks_alone(limits: GroupLimits, max_prompt: int, max_tokens: int, max_n: int) -> int:
    """Blocks that suffice for every request alone that `actions` draws; with windows, of those of one sequence."""
    if limits.groups == PLAIN:
        return max_n * -(-(max_prompt + max_tokens) // limits.block_size)
    return limits.num_blocks_alone(_request(Submit([1] * max_prompt, max_tokens), 0.0, limits))


@st.composite
def workloads(
    draw: st.DrawFn,
    window: int,
    *,
    max_drafts: int = 4,
    groups: st.SearchStrategy[tuple[CacheGroup, ...]] = st.just(PLAIN),  # noqa: B008
    has_states: bool = False,
) -> Workload:
    """A small pool, shared prefixes, parallel sampling, drafts, late arrivals, aborts and lost shards, all at once."""
    block_size = draw(st.integers(1, 4))
    max_tokens, max_prompt = draw(st.integers(1, 23)), draw(st.sampled_from([2, 6, 14]))
    max_n = draw(st.sampled_from([1, 2, 3, 6]))
    max_num_seqs = draw(st.integers(max(2, max_n), max(6, max_n + 3)))
    limits = GroupLimits(
        num_blocks=0,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.sampled_from([100, 8, max_num_seqs, 2, 1])),
        max_model_len=max_prompt + max_tokens + draw(st.sampled_from([0, 3])),
        groups=draw(groups),
    )
    if has_states:
        num_states = STATES_PER_SEQUENCE * max_num_seqs + draw(st.sampled_from([0, 0, 1, 8]))
        limits = replace(limits, groups=(*limits.groups, CacheGroup(0, 0, num_states)))
        max_drafts = 0
    alone = blocks_alone(limits, max_prompt, max_tokens, max_n)
    limits = replace(limits, num_blocks=alone + draw(st.sampled_from([0, 0, 1, 2, alone // 2, alone])))
    num_drafts = draw(st.integers(0, max_drafts))
    submits, others = actions(max_prompt, max_tokens, max_n, num_drafts)
    one = st.one_of(submits, submits, others)
    # A list of actions is short on average, so that several are drawn.
    drawn = [draw(st.lists(submits, max_size=6)), *(draw(st.lists(one, max_size=16)) for _ in range(3))]
    eos_share = draw(st.sampled_from([0.0, 0.05, 0.2]))
    max_delay = draw(st.sampled_from([0, 1, 5, 20]))
    return Workload(limits, window, eos_share, num_drafts, max_delay, [action for part in drawn for action in part])


def play(workload: Workload, num_ranks: int = 1, make_world: type[World] = World) -> World:
    """Plays a workload to its end, whatever the router guesses.

    Every request that was not cut off must have its tokens, and every block be free. The shards have refused no plan.
    """
    world = make_world(
        workload.limits,
        workload.window,
        workload.eos_share,
        num_ranks,
        workload.max_draft_tokens,
        max_grammar_delay=workload.max_grammar_delay,
    )
    world.scheduler.grammars.max_unused = 1  # So that some are forgotten and asked for again.
    groups: list[SequenceGroup] = []
    for action in workload.actions:
        match action:
            case Submit():
                with nullcontext() if workload.limits.groups == PLAIN else suppress(RequestTooLong):
                    groups.append(world.submit(_request(action, world.now, workload.limits)))
            case Steps(number):
                for _ in range(number):
                    world.step()
            case Abort(number) if groups:
                world.scheduler.end(groups[number % len(groups)])
            case Draft(num_draft_tokens):
                world.scheduler.num_draft_tokens = num_draft_tokens
            case NewEpoch():
                world.new_epoch()
            case LoseCache():
                world.lose_cache()
            case LoseCheckpoints():
                world.lose_checkpoints()
            case LoseMirror():
                world.scheduler.prefixes.clear()
    world.run(2000)
    for group in groups:
        check_output(group, workload)
        check_prompt_logprobs(world, group)
    world.check_whole()
    return world


def check_output(group: SequenceGroup, workload: Workload) -> None:
    """A sequence has the tokens that it would have had alone, or the first of them if it was cut off."""
    if group.beams is not None:
        check_beams(group, workload)
        return
    for sequence in group.sequences:
        assert sequence.is_finished
        expected = expected_output(group.request, sequence.index, workload.limits.max_model_len, workload.eos_share)
        found = output(group, sequence.index)
        if sequence.finish_reason not in FINISHED_BY_ITSELF:
            expected = expected[: len(found)]
        assert found == expected


def check_prompt_logprobs(world: World, group: SequenceGroup) -> None:
    """Each has come once, in order, if they were asked for: all of them before the first token."""
    found = world.prompt_logprobs.get(group, [])
    expected = prompt_logprobs(group.request.prompt_token_ids)
    if not group.request.params.HasField("prompt_logprobs"):
        assert not found
    elif group.num_output_tokens:
        assert found == expected
    else:
        assert found == expected[: len(found)]


def check_beams(group: SequenceGroup, workload: Workload) -> None:
    """A beam search that was not cut off has found what it would have found alone."""
    assert all(sequence.is_finished for sequence in group.sequences)
    if all(sequence.finish_reason in FINISHED_BY_ITSELF for sequence in group.sequences):
        assert group.beams is not None
        found = [(h.beam.token_ids(), h.beam.cumulative_logprob) for h in group.beams.search.hypotheses]
        assert found == expected_beams(group.request)


def _request(submit: Submit, now: float, limits: GroupLimits):
    beams = None
    if submit.beam_width:
        beams = BeamSettings(
            width=submit.beam_width,
            n=submit.beam_width,
            max_tokens=min(submit.max_tokens, limits.max_model_len - len(submit.prompt)),
            num_scores=min(submit.beam_width + 1, VOCAB_SIZE),
            stop_token_ids=frozenset({EOS}),
        )
    return make_request(
        submit.prompt,
        arrival_s=now,
        max_tokens=submit.max_tokens,
        n=submit.beam_width or submit.n,
        beams=beams,
        priority=submit.priority,
        deadline_s=None if submit.deadline_in_s is None else now + submit.deadline_in_s,
        cache_salt=submit.cache_salt,
        seed=submit.seed,
        grammar="" if beams else submit.grammar,
        **({} if beams or submit.prompt_logprobs is None else {"prompt_logprobs": submit.prompt_logprobs}),
    )
