"""Logits processors: what they are told of a batch, how they are found, and what becomes of one that fails."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.block_hash import root_digest
from pagewire_common.sampling_params import faults, with_defaults
from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.errors import BadOption
from pagewire_shard.logits_processors import (
    LogitsProcessor,
    ModelConfig,
    ProcessorConfig,
    RequestParams,
    SchedulerConfig,
    process_dict_updates,
)
from pagewire_shard.logits_processors.batch_order import BatchOrder
from pagewire_shard.logits_processors.loading import load_processors
from pagewire_shard.sampling.processing import LogitsProcessing
from processors import Chain, Failing, Sharpen, chained

CPU = torch.device("cpu")
CONFIG = ProcessorConfig(ModelConfig("m", 64, 40), SchedulerConfig(8))
FILE = Path(chained.__code__.co_filename)


def upload(values, dtype=torch.int64):
    return torch.tensor(list(values), dtype=dtype)


def sequence(seq_id=0, *, prompt=(1, 2), output=(), temperature=1.0, **extra_args):
    params = with_defaults(inference_pb2.SamplingParams(temperature=temperature))
    params.extra_args.update(extra_args)
    tokens = [*prompt, *output]
    new = Sequence(seq_id, seq_id, tokens, len(prompt), root_digest(""), params, 0, shard_pb2.StopConditions())
    new.output_ids = list(output)
    return new


def processing(*classes):
    return LogitsProcessing(classes, CONFIG, CPU)


@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=8), max_size=8))
def test_whoever_follows_the_updates_knows_the_rows_of_every_batch(batches):
    order, states = BatchOrder[int](), {}
    before: list[int] = []
    for rows in batches:
        update = order.advance(rows, lambda row, index: (index, row, None, []))
        assert (update is None) == (rows == before)
        process_dict_updates(states, update, lambda row, _prompt, _output: row)
        assert states == dict(enumerate(rows))
        before = rows


@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=8), max_size=8))
def test_the_order_in_which_vllm_follows_updates_leads_to_the_same(batches):
    """Its own processors take what is added before what is removed."""
    order, states = BatchOrder[int](), {}
    for rows in batches:
        update = order.advance(rows, lambda row, index: (index, row, None, []))
        if update is not None:
            states |= {index: row for index, row, _, _ in update.added}
            for index in update.removed:
                states.pop(index, None)
            for source, target, direction in update.moved:
                moved, other = states.pop(source, None), states.pop(target, None)
                states |= {} if moved is None else {target: moved}
                states |= {} if other is None or direction.name != "SWAP" else {source: other}
        assert states == dict(enumerate(rows))


def test_rows_that_do_not_sample_and_sequences_that_have_stopped_are_passed_over():
    stage = processing(Chain)
    asking, stopped = sequence(1, output=[5], chain=1), sequence(2, chain=1)
    stopped.output_ids = None
    logits = torch.zeros(4, 40)
    assert stage.process(logits, [None, asking, stopped, sequence(3)], upload) == []
    assert torch.isfinite(logits).sum(1).tolist() == [40, 1, 40, 40]
    assert int(logits[1].argmax()) == chained([1, 2], [5], 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_failure_ends_its_own_row_and_leaves_the_others_what_they_had(dtype, caplog):
    stage = processing(Failing, Chain)
    bad, good, plain = sequence(1, fail_after=1), sequence(2, chain=1), sequence(3)
    given = torch.randn(3, 40).to(dtype)
    for num_tokens in range(3):
        logits = given.clone()
        failures = stage.process(logits, [bad, good, plain], upload)
        assert torch.equal(logits[2], given[2])
        expected = chained([1, 2], [0] * num_tokens, 40)
        assert (torch.isfinite(logits[1]).sum(), logits[1].argmax()) == (1, expected)
        if num_tokens == 0:
            assert failures == []
            assert logits[0].eq(0).all()
        else:
            assert [(each.run_index, each.code, each.message) for each in failures] == [
                (0, 13, "a logits processor failed with RuntimeError")
            ]
            assert logits[0].isnan().all()
        for each in (bad, good, plain):
            each.output_ids.append(0)
    assert "this is not for clients" in caplog.text


def test_one_that_fails_for_batches_alone_is_logged_once_and_built_once_for_each_sequence(caplog):
    built = []

    class Single(Chain):
        def __init__(self, *args):
            super().__init__(*args)
            built.append(self)

        def apply(self, logits):
            assert len(logits) == 1, "one row at a time"
            return super().apply(logits)

    stage = processing(Single)
    rows = [sequence(i, prompt=(i, 2), chain=1) for i in range(2)]
    for step in range(4):
        batch = rows if step < 3 else [rows[1], sequence(2, prompt=(2, 2), chain=1)]
        logits = torch.zeros(2, 40)
        assert stage.process(logits, batch, upload) == []
        assert logits.argmax(1).tolist() == [chained([each.seq_id, 2], each.output_ids, 40) for each in batch]
        for each in batch:
            each.output_ids.append(0)
    assert len(built) == 1 + 3, "the first one, and one for each sequence"
    assert caplog.text.count("AssertionError: one row at a time") == 1


def test_parameters_that_are_not_accepted_end_the_row_before_processors_see_it():
    stage = processing(Chain)
    logits = torch.zeros(2, 40)
    [failure] = stage.process(logits, [sequence(1, chain="x"), sequence(2, chain=1)], upload)
    assert (failure.run_index, failure.code, failure.message) == (0, 3, "chain is no integer")
    assert logits[0].isnan().all()
    assert torch.isfinite(logits[1]).sum() == 1


def test_processors_that_keep_the_most_probable_token_see_logits_behind_the_temperature():
    stage = processing(Sharpen)
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).repeat(4, 10)
    rows = [sequence(i, within=2.5, temperature=t) for i, t in enumerate((0.0, 0.5, 1.0, 2.0))]
    given = logits.clone()
    stage.process(logits, rows, upload)
    kept = [sorted(set(row[torch.isfinite(row)].tolist())) for row in logits]
    assert kept[1:] == [[2.0, 3.0], [1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]]
    assert torch.equal(logits.argmax(1), given.argmax(1))
    alone = given[:1].clone()
    stage.process(alone, rows[:1], upload)
    assert torch.equal(alone, given[:1]), "a greedy row alone is not looked at"


class Narrowing(Chain):
    def apply(self, logits):
        return logits[:, :-1]


def test_what_has_another_shape_is_a_failure():
    [failure] = processing(Narrowing).process(torch.zeros(1, 40), [sequence()], upload)
    assert failure.message == "a logits processor failed with TypeError"


def test_parameters_have_the_names_of_the_public_class():
    message = inference_pb2.SamplingParams(temperature=0.5, allowed_token_ids=[3])
    message.extra_args.update({"n": 3, "share": 0.25, "list": [1, {"deep": None}], "on": True})
    params = RequestParams(message)
    assert (params.temperature, params.allowed_token_ids, params.logprobs, params.seed) == (0.5, [3], None, None)
    assert params.extra_args == {"n": 3, "share": 0.25, "list": [1, {"deep": None}], "on": True}
    assert type(params.extra_args["n"]) is int
    assert RequestParams(inference_pb2.SamplingParams()).extra_args is None
    with pytest.raises(AttributeError, match="guided_decoding"):
        _ = params.guided_decoding


def test_what_the_router_resolves_is_known_as_tokens_or_refused_by_name():
    seen = []

    class Reading(Chain):
        @classmethod
        def validate_params(cls, sampling_params):
            seen.append(sampling_params)

    row = sequence()
    row.stop, row.bad_words = shard_pb2.StopConditions(token_ids=[2, 7]), [[5], [6, 8]]
    processing(Reading).process(torch.zeros(1, 40), [row], upload)
    [params] = seen
    assert (params.stop_token_ids, params.all_stop_token_ids) == ([2, 7], {2, 7})
    assert params.bad_words_token_ids == [[5], [6, 8]]
    for name in ("stop", "bad_words", "structured_outputs"):
        with pytest.raises(AttributeError, match=f"on a shard have no '{name}'"):
            getattr(params, name)


def test_classes_are_found_by_module_and_by_file(tmp_path):
    [by_module] = load_processors(["processors:Chain"])
    assert by_module is Chain
    (tmp_path / "beside.py").write_text("from processors import Chain as Base\n")
    (tmp_path / "own.py").write_text(
        "from beside import Base\nclass Outer:\n    class Own(Base): pass\nassert __name__ != '__main__'\n"
    )
    [by_file] = load_processors([f"{tmp_path}/own.py:Outer.Own"])
    assert issubclass(by_file, LogitsProcessor)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("processors", "accepted: MODULE:CLASS or FILE.py:CLASS"),
        ("no_such_module:A", "cannot be loaded: ModuleNotFoundError"),
        ("/no/such/file.py:A", "there is no file /no/such/file.py"),
        ("processors:Missing", "has no attribute 'Missing'"),
        ("processors:chained", "no class with the methods"),
        ("pagewire_shard.logits_processors:LogitsProcessor", "does not define __init__, apply"),
    ],
)
def test_what_cannot_be_loaded_is_an_option_that_is_refused(name, why):
    with pytest.raises(BadOption) as caught:
        load_processors([name])
    assert name in caught.value.message
    assert why in caught.value.message


class Unbuildable(Chain):
    def __init__(self, *args):
        raise OSError("no table")


@pytest.mark.parametrize("last_line", ["sys.exit(3)", "argparse.ArgumentParser().parse_args(['--no-such'])"])
def test_a_program_that_ends_when_it_is_loaded_is_an_option_that_is_refused(tmp_path, last_line):
    (tmp_path / "program.py").write_text(f"import argparse, sys\nclass A: pass\n{last_line}\n")
    with pytest.raises(BadOption, match="program.py:A: it cannot be loaded: SystemExit: [23]"):
        load_processors([f"{tmp_path}/program.py:A"])


def test_one_that_exits_ends_its_own_row():
    rows = [sequence(1, fail_after=0, exits=True), sequence(2, chain=1)]
    logits = torch.zeros(2, 40)
    [failure] = processing(Failing, Chain).process(logits, rows, upload)
    assert (failure.run_index, failure.message) == (0, "a logits processor failed with SystemExit")
    assert int(logits[1].argmax()) == chained([1, 2], [], 40)


def test_one_that_cannot_be_built_keeps_the_shard_from_starting():
    with pytest.raises(BadOption, match="OSError: no table"):
        processing(Unbuildable)


def test_arguments_are_bounded_in_size_and_depth():
    def fault(args):
        params = inference_pb2.SamplingParams(temperature=1, top_p=1, repetition_penalty=1)
        params.extra_args.update(args)
        return [description for name, description in faults(with_defaults(params), 40) if name == "extra_args"]

    deep: list[object] = []
    for _ in range(14):
        deep = [deep]
    assert fault({"a": "x" * 60_000, "deep": deep}) == []
    assert "bytes; accepted: up to 65,536" in fault({"a": "x" * 70_000})[0]
    assert "more than 16 deep" in fault({"deep": [deep]})[0]
    assert "no number of JSON" in fault({"a": float("inf")})[0]
