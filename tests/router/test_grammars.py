"""Requests with a grammar wait until their shard group has prepared it, and nobody else waits for that."""

from pagewire.v1 import shard_pb2
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.scheduler import Scheduler
from scheduling_world import make_request

LIMITS = GroupLimits(num_blocks=64, block_size=4, max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64)
CANCELLED, INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 1, 3, 8


def new_scheduler(num_ranks=1):
    scheduler = Scheduler(LIMITS, num_ranks=num_ranks)
    scheduler.reset(LIMITS.num_blocks, 2)
    return scheduler


def submit(scheduler, grammar="", **options):
    return scheduler.add(make_request([1, 2, 3], grammar=grammar, max_tokens=4, **options))


def asked(scheduler):
    return [message.prepare.name for message in scheduler.take_messages() if message.HasField("prepare")]


def forgotten(scheduler):
    return [name for message in scheduler.take_messages() for name in message.forget.names]


def prepared(scheduler, name, code=0, message=""):
    scheduler.on_prepared(shard_pb2.Prepared(name=name, code=code, message=message))


def admitted(scheduler):
    plan = scheduler.schedule(0.0)
    return [admit.grammar for admit in plan.admits] if plan else []


def answer_plan(scheduler, step, num_seqs):
    """The result of a plan whose sequences have all stopped."""
    scheduler.update(
        shard_pb2.StepResult(
            step=step,
            num_computed_tokens=[3] * num_seqs,
            num_known_tokens=[4] * num_seqs,
            num_sampled_tokens=[1] * num_seqs,
            sampled_token_ids=[0] * num_seqs,
            stop_reasons=[shard_pb2.STOP_REASON_TOKEN] * num_seqs,
            next_write_block_shared=[False] * num_seqs,
            first_run_indices=range(num_seqs),
            num_cached_tokens=[0] * num_seqs,
            free_blocks=[LIMITS.num_blocks],
        )
    )


def test_others_overtake_a_request_whose_grammar_is_not_ready():
    scheduler = new_scheduler()
    submit(scheduler, "g")
    submit(scheduler)
    assert asked(scheduler) == ["g"]
    assert admitted(scheduler) == [""]
    assert scheduler.num_waiting == 1
    prepared(scheduler, "g")
    assert admitted(scheduler) == ["g"]


def test_the_content_goes_with_the_prepare_and_not_with_the_admission():
    scheduler = new_scheduler()
    submit(scheduler, "a+")
    (message,) = scheduler.take_messages()
    assert message.prepare.grammar.regex == "a+"
    prepared(scheduler, "a+")
    admit = scheduler.schedule(0.0).admits[0]
    assert not admit.sampling_params.HasField("structured_outputs")


def test_requests_of_one_grammar_share_a_preparation_and_keep_their_order():
    scheduler = new_scheduler()
    late = submit(scheduler, "g", arrival_s=2.0)
    early = submit(scheduler, "g", arrival_s=1.0)
    assert asked(scheduler) == ["g"]
    prepared(scheduler, "g")
    assert list(iter(scheduler.waiting.pop, None)) == [early, late]
    submit(scheduler, "g")
    assert asked(scheduler) == []


def test_every_rank_has_to_be_ready():
    scheduler = new_scheduler(num_ranks=2)
    submit(scheduler, "g")
    prepared(scheduler, "g")
    assert admitted(scheduler) == []
    prepared(scheduler, "g")
    assert admitted(scheduler) == ["g"]


def test_a_refusal_ends_all_that_wait_for_it_and_is_remembered():
    scheduler = new_scheduler()
    groups = [submit(scheduler, "g"), submit(scheduler, "g")]
    other = submit(scheduler, "h")
    prepared(scheduler, "g", INVALID_ARGUMENT, "uses not")
    assert [(r.group, r.message) for r in scheduler.grammars.refusals] == [(group, "uses not") for group in groups]
    scheduler.take_messages()
    groups.append(submit(scheduler, "g"))
    assert [r.group for r in scheduler.grammars.refusals] == groups
    assert asked(scheduler) == []
    assert other not in [r.group for r in scheduler.grammars.refusals]


def test_what_took_too_long_is_asked_for_again():
    scheduler = new_scheduler(num_ranks=2)
    submit(scheduler, "g")
    prepared(scheduler, "g", RESOURCE_EXHAUSTED)
    submit(scheduler, "g")
    assert len(scheduler.grammars.refusals) == 2, "while another rank is still at it, nobody is asked again"
    scheduler.take_messages()
    prepared(scheduler, "g")
    submit(scheduler, "g")
    messages = scheduler.take_messages()
    assert [message.WhichOneof("message") for message in messages] == ["forget", "prepare"]


def test_a_request_that_ends_while_its_grammar_is_prepared_is_not_admitted():
    scheduler = new_scheduler()
    group = submit(scheduler, "g")
    scheduler.end(group)
    assert scheduler.num_waiting == 0
    prepared(scheduler, "g")
    assert admitted(scheduler) == []
    assert not scheduler.has_work()


def test_a_new_epoch_prepares_again_what_is_needed():
    scheduler = new_scheduler()
    submit(scheduler, "a")
    submit(scheduler, "b")
    gone = submit(scheduler, "c")
    for name in asked(scheduler):
        prepared(scheduler, name)
    scheduler.end(gone)
    assert admitted(scheduler) == ["a", "b"]
    scheduler.reset(LIMITS.num_blocks, 2)
    assert admitted(scheduler) == []
    assert sorted(asked(scheduler)) == ["a", "b"]
    prepared(scheduler, "b")
    assert admitted(scheduler) == ["b"]


def test_requests_that_wait_for_their_grammar_move_to_another_group():
    first, second = new_scheduler(), new_scheduler()
    group = submit(first, "g")
    assert first.hand_over() == [group]
    second.adopt(group)
    assert (first.num_waiting, second.num_waiting) == (0, 1)
    assert asked(second) == ["g"]


def test_a_grammar_is_kept_for_later_requests_until_others_have_been_used():
    scheduler = new_scheduler()
    scheduler.grammars.max_unused = 2
    for name in ("a", "b", "a", "c"):
        group = submit(scheduler, name)
        if name in asked(scheduler):
            prepared(scheduler, name)
        scheduler.end(group)
    assert forgotten(scheduler) == ["b"]


def test_a_grammar_is_not_forgotten_before_the_shards_have_applied_the_plan_that_names_it():
    scheduler = new_scheduler()
    scheduler.grammars.max_unused = 0
    group = submit(scheduler, "g")
    asked(scheduler)
    prepared(scheduler, "g")
    assert admitted(scheduler) == ["g"]
    scheduler.end(group)
    assert forgotten(scheduler) == []
    answer_plan(scheduler, 1, 1)
    assert forgotten(scheduler) == ["g"]


def test_answers_of_grammars_nobody_has_asked_for_are_ignored():
    scheduler = new_scheduler()
    submit(scheduler, "g")
    prepared(scheduler, "other")
    assert admitted(scheduler) == []


def test_a_grammar_that_nobody_waits_for_any_more_is_withdrawn():
    scheduler = new_scheduler(num_ranks=2)
    scheduler.end(submit(scheduler, "g"))
    assert [message.WhichOneof("message") for message in scheduler.take_messages()] == ["prepare", "forget"]
    submit(scheduler, "g")
    assert asked(scheduler) == [], "both ranks have to answer first: their answers do not say which Prepare they mean"
    prepared(scheduler, "g")
    prepared(scheduler, "g", CANCELLED)
    assert asked(scheduler) == ["g"]
    assert admitted(scheduler) == []
    assert not scheduler.grammars.refusals
    prepared(scheduler, "g")
    prepared(scheduler, "g")
    assert admitted(scheduler) == ["g"]


def test_a_withdrawn_grammar_leaves_nothing_behind():
    scheduler = new_scheduler()
    scheduler.end(submit(scheduler, "g"))
    scheduler.take_messages()
    prepared(scheduler, "g", CANCELLED)
    submit(scheduler, "g")
    assert asked(scheduler) == ["g"]


def test_grammars_that_nobody_uses_make_room_for_another():
    scheduler = new_scheduler()
    for name in ("a", "b"):
        group = submit(scheduler, name)
        asked(scheduler)
        prepared(scheduler, name)
        if name == "a":
            scheduler.end(group)
    submit(scheduler, "g")
    asked(scheduler)
    prepared(scheduler, "g", RESOURCE_EXHAUSTED)
    assert not scheduler.grammars.refusals
    messages = scheduler.take_messages()
    assert [list(message.forget.names) or message.prepare.name for message in messages] == [["a"], "g"]
    prepared(scheduler, "g", RESOURCE_EXHAUSTED, "no room")
    assert [refusal.message for refusal in scheduler.grammars.refusals] == ["no room"]


def test_ranks_that_have_a_grammar_ready_forget_it_before_all_are_asked_again():
    scheduler = new_scheduler(num_ranks=2)
    unused = submit(scheduler, "a")
    asked(scheduler)
    for _ in range(2):
        prepared(scheduler, "a")
    scheduler.end(unused)
    submit(scheduler, "g")
    asked(scheduler)
    prepared(scheduler, "g")
    prepared(scheduler, "g", RESOURCE_EXHAUSTED)
    messages = scheduler.take_messages()
    told = [list(message.forget.names) or message.prepare.name for message in messages]
    assert sorted(told[:-1]) == [["a"], ["g"]]
    assert told[-1] == "g"


def test_a_request_that_ends_before_its_grammar_is_asked_for_again():
    scheduler = new_scheduler()
    scheduler.grammars.max_unused = 8
    unused = submit(scheduler, "a")
    prepared(scheduler, "a")
    scheduler.end(unused)
    group = submit(scheduler, "g")
    asked(scheduler)
    prepared(scheduler, "g", RESOURCE_EXHAUSTED)
    scheduler.end(group)
    assert asked(scheduler) == []
    submit(scheduler, "g")
    assert asked(scheduler) == ["g"]
