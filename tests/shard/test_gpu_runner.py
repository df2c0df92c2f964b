"""The engine on a GPU: what transformers yields on the same GPU, with and without graphs, and never a wait."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pagewire_shard
import pytest
import torch
import transformers
from beam_reference import Search, check_equal, search
from model_world import EngineWorld, MakeRunner, ModelWorld
from pagewire.v1 import inference_pb2
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_shard.config import ShardConfig
from pagewire_shard.errors import PoolTooSmall
from pagewire_shard.execution.device_state import STOP_REASON
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.warm_up import warm_up
from pagewire_shard.loading.model_loader import load_model
from pagewire_shard.startup import build_engine
from random_models import VOCAB_SIZE, family_configs, random_prompts
from reference_model import Comparison, ReferenceModel
from scheduling_world import output
from subject import NUM_TOKENS, Subject, subject

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CUDA = torch.device("cuda", 0)
SIZES = GraphSizes((1, 2, 4, 8, 16), ((8, 8), (24, 4), (32, 16), (128, 16), (512, 16)))
FEW_SIZES = GraphSizes((3,), ((16, 3),))
DEMO = Path(pagewire_shard.__file__).parent / "demo_model"
FLOAT32_TIE = 1e-3
"""Two float32 implementations on a GPU add up in different orders."""
BFLOAT16_TIE = 0.25
"""Two steps of bfloat16 at the size of the demo model's largest logits."""


def gpu_runner(sizes: GraphSizes | None = SIZES) -> MakeRunner:
    """Deferred: the module needs CUDA when it makes a runner, and Triton."""
    from pagewire_shard.execution.gpu_runner import gpu_runner

    return partial(gpu_runner, sizes=sizes)


RUNNERS = pytest.mark.parametrize("sizes", [SIZES, FEW_SIZES, None], ids=["graphs", "few-graphs", "no-graphs"])


@pytest.fixture(scope="module", params=family_configs())
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject(request.param, tmp_path_factory.mktemp(request.param), CUDA)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject("llama", tmp_path_factory.mktemp("llama"), CUDA)


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(FLOAT32_TIE)


def submit(world: ModelWorld, subject: Subject, **options: object) -> list[SequenceGroup]:
    return [
        world.submit(e.prompt, **{"temperature": 0.0, "max_tokens": len(e.tokens), **options}) for e in subject.greedy
    ]


def check(comparison: Comparison, subject: Subject, groups: list[SequenceGroup], how: str) -> None:
    for expected, group in zip(subject.greedy, groups, strict=True):
        comparison.check(expected, output(group), f"{subject.name}, prompt of {len(expected.prompt)}, {how}")


@RUNNERS
@pytest.mark.parametrize("block_size", [16, 64])
def test_a_batch_yields_what_generate_yields(
    family: Subject, comparison: Comparison, sizes: GraphSizes | None, block_size: int
) -> None:
    world = family.world(block_size=block_size, make_runner=gpu_runner(sizes))
    for how in ("first", "from cached prefixes"):
        groups = submit(world, family)
        world.run()
        check(comparison, family, groups, how)


@RUNNERS
@pytest.mark.parametrize("block_size", [16, 64])
def test_prefixes_that_rows_of_one_plan_share_change_nothing(
    llama: Subject, comparison: Comparison, sizes: GraphSizes | None, block_size: int
) -> None:
    """The rows behind the first read blocks that the first one fills in the same step."""
    stem = max((expected.prompt for expected in llama.greedy), key=len)
    prompts = [[*stem, *range(1, 2 + i)] for i in range(8)]
    world = llama.world(block_size=block_size, make_runner=gpu_runner(sizes))
    groups = [world.submit(prompt, temperature=0.0, max_tokens=NUM_TOKENS) for prompt in prompts]
    world.run()
    for prompt, group in zip(prompts, groups, strict=True):
        comparison.check(llama.reference.generate(prompt, NUM_TOKENS), output(group), f"{len(prompt)} tokens")
    assert [group.num_cached_tokens for group in groups] == [0, *[64] * 7]


@RUNNERS
@pytest.mark.parametrize("window", [1, 2])
def test_beams_are_those_of_transformers(llama: Subject, sizes: GraphSizes | None, window: int) -> None:
    """Beside sequences that sample, so that steps are mixed; their attention reads what beams share once."""
    stops = tuple(range(0, VOCAB_SIZE, 6))
    wanted = Search(6, num_return_sequences=6, eos_token_ids=stops, min_new_tokens=2)
    world = llama.world(window=window, block_size=16, make_runner=gpu_runner(sizes))
    searches = [
        world.submit(greedy.prompt, eos_token_ids=stops, **wanted.options(VOCAB_SIZE)) for greedy in llama.greedy[1:3]
    ]
    submit(world, llama)
    world.run()
    for greedy, group in zip(llama.greedy[1:3], searches, strict=True):
        assert group.beams is not None
        expected = search(llama.reference.model, greedy.prompt, wanted)
        check_equal(group.beams.search.hypotheses, expected, len(greedy.prompt), FLOAT32_TIE)


@RUNNERS
def test_prefixes_that_sequences_share_are_read_once_and_change_nothing(
    llama: Subject, comparison: Comparison, sizes: GraphSizes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prompt four times, from the cached prefix that the first round leaves; the others share nothing with it."""
    monkeypatch.setattr("pagewire_shard.execution.prefix_sharing.MIN_SAVED_BYTES", 0)
    monkeypatch.setattr("pagewire_kernels.paged_attention.shared_runs.MIN_SAVED_KEYS", 1)
    world = llama.world(block_size=16, make_runner=gpu_runner(sizes))
    sharing = world.runner.sharing
    assert sharing is not None
    planned: list[bool] = []
    plan = sharing.plan
    monkeypatch.setattr(sharing, "plan", lambda *args: planned.append(plan(*args)) or planned[-1])
    submit(world, llama)
    world.run()
    rounds = [submit(world, llama) for _ in range(4)]
    world.run()
    for groups in rounds:
        check(comparison, llama, groups, "shared")
    assert any(planned)


@RUNNERS
@pytest.mark.parametrize("window", [1, 2, 4])
def test_chunks_preemption_and_plans_in_flight_change_nothing(
    llama: Subject, comparison: Comparison, sizes: GraphSizes | None, window: int
) -> None:
    world = llama.world(
        window=window, num_blocks=8, block_size=16, max_num_batched_tokens=24, make_runner=gpu_runner(sizes)
    )
    groups = submit(world, llama) + submit(world, llama)
    world.run()
    half = len(llama.greedy)
    check(comparison, llama, groups[:half], "first of two")
    check(comparison, llama, groups[half:], "second of two")
    assert world.scheduler.num_preemptions > 0


@RUNNERS
@pytest.mark.parametrize("window", [1, 2, 3])
def test_stops_are_decided_where_the_reference_stops(
    llama: Subject, comparison: Comparison, sizes: GraphSizes | None, window: int
) -> None:
    world = llama.world(window=window, make_runner=gpu_runner(sizes))
    cases = []
    for greedy in llama.greedy:
        early, late = greedy.tokens[4], greedy.tokens[11]
        for options in (
            {"eos_token_ids": (early,)},
            {"stop_token_ids": (late,)},
            {"eos_token_ids": (late,), "stop_token_ids": (early,), "min_tokens": 8},
        ):
            group = world.submit(greedy.prompt, temperature=0.0, max_tokens=NUM_TOKENS, **options)
            cases.append((llama.reference.answer(group.request), group))
    world.run()
    for expected, group in cases:
        comparison.check(expected, output(group), f"stops, window of {window}")
    assert {group.sequences[0].finish_reason for _, group in cases} >= {inference_pb2.FINISH_REASON_STOP}


@RUNNERS
def test_forks_write_to_copies_and_sample_what_the_reference_samples(
    llama: Subject, comparison: Comparison, sizes: GraphSizes | None
) -> None:
    world = llama.world(make_runner=gpu_runner(sizes))
    options = {"temperature": 0.9, "top_p": 0.9, "presence_penalty": 0.7, "frequency_penalty": 0.3, "n": 3}
    prompts = random_prompts((1, 9, 16, 21, 40), seed=2)
    groups = [world.submit(p, seed=i, max_tokens=NUM_TOKENS, **options) for i, p in enumerate(prompts)]
    world.run()
    for group in groups:
        for sequence in group.sequences:
            expected = llama.reference.answer(group.request, sequence.index)
            comparison.check(expected, output(group, sequence.index), f"sequence {sequence.index}")


@RUNNERS
def test_logprobs_are_the_models_own_whatever_is_sampled(llama: Subject, sizes: GraphSizes | None) -> None:
    world = llama.world(make_runner=gpu_runner(sizes))
    nums = (0, 1, 5, 20, 3, 2)
    groups = [
        world.submit(e.prompt, temperature=0.0, max_tokens=NUM_TOKENS, logprobs=num, repetition_penalty=1.2)
        for e, num in zip(llama.greedy, nums, strict=True)
    ]
    without = world.submit([1, 2, 3], temperature=0.0, max_tokens=4)
    world.run()
    assert without.sequences[0] not in world.logprobs
    for group, num in zip(groups, nums, strict=True):
        expected = llama.reference.answer(group.request)
        assert output(group) == expected.tokens
        entries = world.logprobs[group.sequences[0]]
        for entry, token, row in zip(entries, expected.tokens, expected.logits.log_softmax(-1), strict=True):
            assert entry.logprob == pytest.approx(float(row[token]), abs=1e-3)
            assert len(entry.top_token_ids) == num
            ranked = row.sort(descending=True).values
            torch.testing.assert_close(torch.tensor(entry.top_logprobs), ranked[:num], atol=1e-3, rtol=0)


@pytest.mark.parametrize("window", [1, 2])
def test_graphs_change_nothing(llama: Subject, window: int) -> None:
    """All at once, in a pool that preempts."""
    options = {"temperature": 0.8, "top_k": 50, "seed": 5, "n": 3, "repetition_penalty": 1.1, "logprobs": 2}
    options |= {"stop_token_ids": tuple(range(0, 200, 9)), "min_tokens": 14}
    worlds = [
        llama.world(window=window, num_blocks=11, block_size=16, make_runner=gpu_runner(sizes))
        for sizes in (None, SIZES)
    ]
    answers = []
    for world in worlds:
        groups = submit(world, llama, **options)
        world.run()
        answers.append([output(group, index) for group in groups for index in range(3)])
        assert world.scheduler.num_preemptions > 0
    assert answers[0] == answers[1]


def test_the_void_slot_stays_void(llama: Subject) -> None:
    world = llama.world(make_runner=gpu_runner(GraphSizes((16,), ((512, 16),))))
    submit(world, llama)
    world.run()
    state = world.runner.state
    assert state.ints[state.void_slot, STOP_REASON] != 0
    assert state.ints[state.void_slot, :STOP_REASON].tolist() == [0, 0]


@contextmanager
def syncs_are_errors() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def forbid_syncs(world: ModelWorld) -> None:
    """Makes every launch fail that waits for the device."""
    launch = world.engine.launch

    def guarded(plan):
        with syncs_are_errors():
            return launch(plan)

    world.engine.launch = guarded


@RUNNERS
def test_no_launch_waits_for_the_device(llama: Subject, sizes: GraphSizes | None) -> None:
    """Admissions, chunks, forks with copies, sampling, stops, log-probabilities and preemption among them."""
    world = llama.world(num_blocks=14, max_num_batched_tokens=32, make_runner=gpu_runner(sizes))
    warm_up(world.runner, 16)
    forbid_syncs(world)
    groups = submit(world, llama, temperature=0.8, n=2, presence_penalty=0.3, logprobs=3, min_tokens=2, seed=1)
    groups += submit(world, llama, stop_token_ids=(3, 5, 7))
    world.run()
    assert all(group.is_finished for group in groups)
    assert world.scheduler.num_preemptions > 0


@RUNNERS
def test_steps_are_launched_while_the_device_is_busy(llama: Subject, sizes: GraphSizes | None) -> None:
    world = llama.world(window=2, make_runner=gpu_runner(sizes))
    groups = submit(world, llama)
    # Kernels are loaded by then, and every sequence decodes.
    for _ in range(6):
        world.step()
    engine, was_ready = world.engine, []
    launch = engine.launch

    def behind_a_long_kernel(plan):
        torch.cuda._sleep(200_000_000)
        pending = launch(plan)
        was_ready.append(pending.is_ready())
        return pending

    engine.launch = behind_a_long_kernel
    for _ in range(4):
        world.step()
    engine.launch = launch
    world.run()
    assert was_ready == [False] * len(was_ready)
    assert was_ready
    assert all(group.is_finished for group in groups)


@RUNNERS
def test_a_report_that_is_copied_late_is_that_of_its_own_step(
    llama: Subject, comparison: Comparison, sizes: GraphSizes | None
) -> None:
    """The next forward pass runs meanwhile."""
    world = llama.world(window=2, make_runner=gpu_runner(sizes))
    downlink = world.runner.downlink
    send = downlink.send

    def late(*report):
        with torch.cuda.stream(downlink._stream):
            torch.cuda._sleep(10_000_000)
        return send(*report)

    downlink.send = late
    groups = submit(world, llama)
    world.run()
    check(comparison, llama, groups, "late reports")


def test_steps_take_time_on_the_device_and_say_so(llama: Subject) -> None:
    world = llama.world(window=1, make_runner=gpu_runner())
    submit(world, llama)
    results = []
    collect = world.engine.collect
    world.engine.collect = lambda pending: results.append(collect(pending)) or results[-1]
    world.run()
    timings = [result.timings for result in results if len(result.num_computed_tokens)]
    assert all(timing.forward_us > 0 and timing.sample_us > 0 for timing in timings)


def test_uploads_outlive_a_device_that_is_behind() -> None:
    from pagewire_shard.execution.pinned_transfer import PinnedUplink

    uplink = PinnedUplink(CUDA, num_buffers=3, buffer_bytes=4096)
    out = torch.zeros(100, dtype=torch.int64, device=CUDA)
    torch.cuda._sleep(100_000_000)
    uploaded = []
    for step in range(8):
        uplink.begin_step()
        # The last of these does not fit into a buffer.
        uploaded += [(step, uplink.upload([step] * size, torch.int32)) for size in (1, 7, 300, 2000)]
        uploaded.append((step, uplink.upload([0.5 + step], torch.float32) - 0.5))
        uplink.upload([step] * 100, out=out)
        uplink.end_step()
    for step, tensor in uploaded:
        assert (tensor == step).all()
    assert (out == 7).all()


PROMPTS = (
    "Hello, my name is",
    "The capital of France is",
    "The future of AI is",
    "And the king said unto his servants,",
    "She was very happy to see her sister again,",
    "Mr. Darcy looked at her",
    "Once upon a time there was a little girl who",
    "The best way to learn a language",
    "In the morning the sun",
    "He opened the door and",
    "Water is",
    "The dog",
    "My father told me",
    "I have never seen",
    "It was a dark and stormy night, and the",
    "There are many kinds of",
)


def demo(dtype: torch.dtype, name: str, num_tokens: int) -> Subject:
    reference = ReferenceModel(transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=dtype).to(CUDA).eval())
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    greedy = [reference.generate(tokenizer(prompt).input_ids, num_tokens) for prompt in PROMPTS]
    model = load_model(DEMO, device=CUDA, dtype=name).model
    return Subject(f"demo, {name}", reference, model, greedy, CUDA, dtype)


@RUNNERS
def test_the_demo_model_in_float32_yields_what_generate_yields(
    comparison: Comparison, sizes: GraphSizes | None
) -> None:
    subject = demo(torch.float32, "float32", 48)
    world = subject.world(max_model_len=512, make_runner=gpu_runner(sizes))
    groups = submit(world, subject)
    world.run()
    check(comparison, subject, groups, "demo")


def test_the_demo_model_in_bfloat16_yields_the_same_up_to_ties_nearly_always() -> None:
    subject = demo(torch.bfloat16, "bfloat16", 32)
    world = subject.world(max_model_len=512, make_runner=gpu_runner())
    groups = submit(world, subject)
    world.run()
    wrong = []
    for expected, group in zip(subject.greedy, groups, strict=True):
        try:
            Comparison(BFLOAT16_TIE).check(expected, output(group), "bfloat16")
        except AssertionError as error:
            wrong.append(str(error))
    assert len(wrong) <= len(PROMPTS) // 16, "\n".join(wrong)


@pytest.mark.parametrize(("dtype", "tie", "least_share"), [("float32", 1e-3, 1.0), ("bfloat16", 0.13, 0.95)])
def test_a_started_engine_chooses_what_transformers_chooses_up_to_ties(
    dtype: str, tie: float, least_share: float
) -> None:
    """64 prompts at once, 64 tokens each. Of each token the reference's logits are those after the engine's own tokens;
    logits of 8 to 16 are 2**-4 apart in bfloat16, and a tie is two roundings."""
    config = replace(CONFIG, dtype=dtype, max_num_seqs=64, max_model_len=256, kv_cache_memory_bytes=1 << 28)
    engine = build_engine(config, DEMO, b"")
    info, rng = engine.info, random.Random(0)
    prompts = [rng.choices(range(1, info.vocab_size), k=length) for length in range(3, 67)]
    limits = GroupLimits(
        num_blocks=info.num_blocks[0],
        block_size=info.block_size,
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        max_model_len=info.max_model_len,
    )
    world = EngineWorld(engine, limits)
    groups = [world.submit(prompt, temperature=0.0, max_tokens=64) for prompt in prompts]
    world.run()
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=getattr(torch, dtype)).to(CUDA).eval()
    reference, gaps = ReferenceModel(model), []
    for prompt, group in zip(prompts, groups, strict=True):
        tokens = output(group)
        logits = reference.greedy_after(prompt, tokens).logits
        gaps.append(float((logits.amax(-1) - logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]).max()))
    assert sum(gap <= tie for gap in gaps) >= least_share * len(gaps), f"largest gaps by prompt: {gaps}"


CONFIG = ShardConfig(model=str(DEMO), model_name="demo", device="cuda", max_num_seqs=8, max_num_batched_tokens=2048)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_a_start_measures_what_the_pool_may_take(cuda_graphs: bool) -> None:
    engine = build_engine(replace(CONFIG, cuda_graphs=cuda_graphs, gpu_memory_utilization=0.5), DEMO, b"")
    # All sequences at full length: more can never be used.
    assert list(engine.info.num_blocks) == [8 * 2048 // 64]
    assert engine.info.dtype == "float16"
    assert torch.cuda.max_memory_reserved() <= 0.5 * torch.cuda.mem_get_info()[1]


def test_a_pool_too_small_for_the_model_says_what_would_help() -> None:
    with pytest.raises(PoolTooSmall, match="--max-num-batched-tokens") as caught:
        build_engine(replace(CONFIG, gpu_memory_utilization=1e-6), DEMO, b"")
    assert "--max-model-len 0" not in str(caught.value)
    one_block = replace(CONFIG, kv_cache_memory_bytes=64 * 6 * 2 * 4 * 32 * 2)
    with pytest.raises(PoolTooSmall, match="--max-model-len 64"):
        build_engine(replace(one_block, max_model_len=2048), DEMO, b"")
    assert build_engine(one_block, DEMO, b"").info.max_model_len == 64
