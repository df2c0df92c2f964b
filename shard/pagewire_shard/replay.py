"""Runs a flight recording again and stops at the first step that comes out otherwise: `pagewire replay`.

A recording from the start of a process is run plan by plan, as it was, and the digests of the host's state are compared
too. One that begins later begins with sequences whose keys and values are gone: they are computed again from their
tokens, and each admission that found a cached prefix first computes that. Block ids then differ, so that tokens, counts
and stops are compared, and not digests.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pagewire.v1 import shard_pb2

from pagewire_shard.recording.records import NUMBERS, Kind, NoRecording, read_records

PREPARE_TIMEOUT_S = 60.0
NO_PREFIX = 1
"""A min_recompute_from with which no cached block is used."""


class Difference(Exception):
    """A step came out otherwise."""


class CannotReplay(Exception):
    """The recording does not fit the model or the device."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if all steps came out as recorded, 1 at the first that did not, 2 if it cannot be run."""
    parser = argparse.ArgumentParser(prog="pagewire replay", description="Runs a flight recording again.")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    from pagewire_shard.errors import ModelError

    try:
        num_steps = replay(arguments.file, model=arguments.model, device=arguments.device)
    except Difference as difference:
        print(f"{arguments.file}: {difference}")
        return 1
    except (CannotReplay, NoRecording, ModelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.file}: {num_steps} steps came out as recorded")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="what --flight-recorder has written, or its FILE.1")
    parser.add_argument("--model", metavar="M", help="directory or hub id of the same model (default: as recorded)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to run (default: as recorded)")


def replay(path: Path, *, model: str | None = None, device: str | None = None) -> int:
    """Replays a file on an engine of its own; returns the number of steps that were compared.

    Raises:
        Difference: the message says which plan, and which sequences.
        CannotReplay, NoRecording, ModelError: it cannot be run.
    """
    records = list(read_records(path))
    if not records or records[0][0] is not Kind.START:
        raise NoRecording(f"{path} does not say what it was recorded on")
    facts = json.loads(records[0][1])
    engine, grammars = _build(facts, model, device)
    try:
        return _Replay(engine, grammars, records).run()
    finally:
        if grammars is not None:
            grammars.close()


def _build(facts: dict[str, Any], model: str | None, device: str | None) -> tuple[Any, Any]:
    from pagewire_shard.grammar.grammars import Grammars
    from pagewire_shard.grammar.limits import GrammarLimits
    from pagewire_shard.loading.model_source import model_digest, resolve_model
    from pagewire_shard.recording.shard_facts import replay_config
    from pagewire_shard.service.model_files import collect_model_files
    from pagewire_shard.service.model_vocabulary import vocabulary_source
    from pagewire_shard.startup import build_engine

    config = replay_config(facts, model=model, device=device)
    directory = resolve_model(config.model, config.load_format)
    digest = model_digest(directory, config.seed if config.load_format == "dummy" else None, config.hf_overrides)
    if digest.hex() != facts["model_digest"]:
        raise CannotReplay(f"{directory} is not the model of the recording: its weights or files differ")
    grammars = None
    if config.structured_outputs:
        source = vocabulary_source(directory, collect_model_files(directory, config.model))
        if source is not None:
            grammars = Grammars(
                GrammarLimits(
                    compile_timeout_s=PREPARE_TIMEOUT_S,
                    compile_memory_bytes=config.grammar_compile_memory_bytes,
                    cache_bytes=config.grammar_cache_memory_bytes,
                ),
                coerce_one_of=config.coerce_one_of,
                lenient=config.lenient_json_schemas,
            )
            grammars.open(source)
    return build_engine(config, directory, digest, grammars), grammars


class _Replay:
    """One pass over the records."""

    def __init__(self, engine: Any, grammars: Any, records: list[tuple[Kind, bytes]]) -> None:
        self._engine = engine
        self._grammars = grammars
        self._records = records
        self._is_exact = False
        """Plans are run as they were, and digests compared."""
        self._step = 0
        """The last step of the engine, which runs more of them than were recorded."""
        self._num_compared = 0
        self._computed: dict[int, int] = {}
        """Computed tokens of each sequence that is there, while plans are not run as they were."""
        self._begun: list[shard_pb2.Admit] = []
        self._begun_computed: dict[int, int] = {}

    def run(self) -> int:
        """Returns the number of compared steps. Raises Difference."""
        results = self._results()
        num_blocks = json.loads(self._records[0][1])["num_blocks"]
        for index, (kind, payload) in enumerate(self._records):
            match kind:
                case Kind.EPOCH:
                    self._begin_epoch(index, *NUMBERS.unpack(payload))
                case Kind.GRAMMAR:
                    self._prepare(shard_pb2.Prepare.FromString(payload))
                case Kind.SEQUENCE:
                    self._add_sequence(payload)
                case Kind.PLAN:
                    if self._is_exact and list(self._engine.info.num_blocks) != num_blocks:
                        raise CannotReplay(f"the pool has {self._engine.info.num_blocks} blocks, not {num_blocks}")
                    plan = shard_pb2.StepPlan.FromString(payload)
                    result = results.get(index)
                    if result is not None:
                        self._run(plan, result)
                case _:
                    pass
        return self._num_compared

    def _results(self) -> dict[int, shard_pb2.StepResult]:
        """The result of each plan that has one, by the plan's index."""
        results: dict[int, shard_pb2.StepResult] = {}
        waiting: dict[int, int] = {}
        for index, (kind, payload) in enumerate(self._records):
            if kind is Kind.EPOCH:
                waiting.clear()
            elif kind is Kind.PLAN:
                waiting[shard_pb2.StepPlan.FromString(payload).step] = index
            elif kind is Kind.RESULT:
                result = shard_pb2.StepResult.FromString(payload)
                if result.step in waiting:
                    results[waiting.pop(result.step)] = result
        return results

    def _begin_epoch(self, index: int, max_inflight: int, num_cached: int) -> None:
        """The first epoch of a file is the state that the file begins with."""
        is_first = all(kind is not Kind.EPOCH for kind, _ in self._records[:index])
        follows = self._records[index + 1][0] if index + 1 < len(self._records) else None
        if is_first:
            self._is_exact = num_cached == 0 and follows is not Kind.SEQUENCE
            self._is_exact &= self._first_step(index) == 1
        self._engine.begin_epoch(max_inflight if self._is_exact else 1)
        self._step = 0
        self._computed.clear()
        self._begun.clear()
        self._begun_computed.clear()

    def _first_step(self, index: int) -> int:
        plans = (payload for kind, payload in self._records[index:] if kind is Kind.PLAN)
        return next((shard_pb2.StepPlan.FromString(payload).step for payload in plans), 0)

    def _prepare(self, message: shard_pb2.Prepare) -> None:
        if self._grammars is None:
            raise CannotReplay("the recording has grammars, which the model's tokenizer does not serve here")
        done: Future[Any] = Future()
        self._grammars.prepare(message.name, message.grammar, done.set_result)
        prepared = done.result(PREPARE_TIMEOUT_S)
        if prepared.code.value[0]:
            raise CannotReplay(f"grammar {message.name!r}: {prepared.message}")

    def _add_sequence(self, payload: bytes) -> None:
        num_computed, has_stopped = NUMBERS.unpack_from(payload)
        if not has_stopped:
            admit = shard_pb2.Admit.FromString(payload[NUMBERS.size :])
            admit.min_recompute_from = NO_PREFIX
            self._begun.append(admit)
            self._begun_computed[admit.seq_id] = num_computed

    def _run(self, plan: shard_pb2.StepPlan, recorded: shard_pb2.StepResult) -> None:
        if self._is_exact:
            result = self._execute(plan)
            if result.state_digest != recorded.state_digest:
                differing = _differing(plan.run_seq_ids, result, recorded)
                raise Difference(_message(plan, differing or "the state digest differs: other blocks or other tokens"))
            _compare(plan, plan.run_seq_ids, result, recorded)
        else:
            self._run_again(plan, recorded)
        self._num_compared += 1

    def _run_again(self, plan: shard_pb2.StepPlan, recorded: shard_pb2.StepResult) -> None:
        """A plan whose admissions found other prefixes cached than there are now."""
        if self._begun:
            self._compute(self._begun, self._begun_computed)
            self._begun = []
        cached = {
            plan.run_seq_ids[i]: count
            for i, count in zip(recorded.first_run_indices, recorded.num_cached_tokens, strict=True)
        }
        later = []
        for admit in plan.admits:
            num_cached = cached.get(admit.seq_id, 0)
            admit.min_recompute_from = NO_PREFIX
            if num_cached:
                later.append(admit)
        self._compute(later, cached)
        own = self._own_plan(plan, {admit.seq_id for admit in later})
        rows = [row for row, seq_id in enumerate(plan.run_seq_ids) if seq_id in set(own.run_seq_ids)]
        result = self._execute(own)
        _compare(plan, list(own.run_seq_ids), result, _only(recorded, rows))
        for seq_id, known in zip(own.run_seq_ids, result.num_computed_tokens, strict=True):
            self._computed[seq_id] = known

    def _own_plan(self, plan: shard_pb2.StepPlan, admitted: set[int]) -> shard_pb2.StepPlan:
        """The plan without sequences that had stopped when the file began, and with those admitted that are not yet."""
        own = shard_pb2.StepPlan()
        own.CopyFrom(plan)
        forks = [fork for fork in plan.forks if fork.parent_seq_id in self._computed]
        there = set(self._computed) | {fork.child_seq_id for fork in forks} | {admit.seq_id for admit in plan.admits}
        rows = [row for row, seq_id in enumerate(plan.run_seq_ids) if seq_id in there]
        del own.forks[:], own.admits[:]
        own.forks.extend(forks)
        own.admits.extend(admit for admit in plan.admits if admit.seq_id not in admitted)
        own.release_seq_ids[:] = [seq_id for seq_id in plan.release_seq_ids if seq_id in there]
        for name in ("run_seq_ids", "run_token_budgets", "run_modes", "num_draft_tokens"):
            values = getattr(plan, name)
            if values:
                getattr(own, name)[:] = [values[row] for row in rows]
        for fork in forks:
            self._computed[fork.child_seq_id] = fork.num_tokens
        for admit in own.admits:
            self._computed[admit.seq_id] = 0
        for seq_id in own.release_seq_ids:
            self._computed.pop(seq_id, None)
        return own

    def _compute(self, admits: list[shard_pb2.Admit], targets: dict[int, int]) -> None:
        """Admits sequences and computes so many tokens of each, in steps of their own, which sample nothing."""
        limit = self._engine.info.max_num_batched_tokens
        for admit in admits:
            plan = shard_pb2.StepPlan(admits=[admit])
            num_computed, target = 0, targets[admit.seq_id]
            is_scored = target == len(admit.token_ids)
            while num_computed < target:
                plan.run_seq_ids[:] = [admit.seq_id]
                plan.run_token_budgets[:] = [min(limit, target - num_computed)]
                if is_scored:
                    plan.run_modes[:] = [shard_pb2.RUN_MODE_SCORE]
                (num_computed,) = self._execute(plan).num_computed_tokens
                plan = shard_pb2.StepPlan()
            if plan.admits:
                self._execute(plan)
            self._computed[admit.seq_id] = num_computed

    def _execute(self, plan: shard_pb2.StepPlan) -> shard_pb2.StepResult:
        from pagewire_shard.errors import PlanRefused

        self._step += 1
        recorded_step, plan.step = plan.step, self._step
        try:
            launched = self._engine.launch(plan)
            result: shard_pb2.StepResult = self._engine.collect(launched)
        except PlanRefused as refusal:
            raise Difference(f"plan {recorded_step} is refused: {refusal.message}") from None
        plan.step = recorded_step
        return result


def _only(result: shard_pb2.StepResult, rows: list[int]) -> shard_pb2.StepResult:
    """Some rows of a result."""
    own = shard_pb2.StepResult(step=result.step)
    ends, end = [], 0
    for count in result.num_sampled_tokens:
        start, end = end, end + count
        ends.append((start, end))
    for row in rows:
        own.num_known_tokens.append(result.num_known_tokens[row])
        own.num_sampled_tokens.append(result.num_sampled_tokens[row])
        own.stop_reasons.append(result.stop_reasons[row])
        own.sampled_token_ids.extend(result.sampled_token_ids[slice(*ends[row])])
    return own


def _compare(
    plan: shard_pb2.StepPlan, seq_ids: Sequence[int], result: shard_pb2.StepResult, recorded: shard_pb2.StepResult
) -> None:
    differing = _differing(seq_ids, result, recorded)
    if differing:
        raise Difference(_message(plan, differing))


def _differing(seq_ids: Sequence[int], result: shard_pb2.StepResult, recorded: shard_pb2.StepResult) -> str:
    """What differs of which sequences, the first few of them; empty: nothing does."""
    there, then = _rows(result), _rows(recorded)
    found = [
        f"sequence {seq_id}: now {_told(now)}, recorded {_told(before)}"
        for seq_id, now, before in zip(seq_ids, there, then, strict=True)
        if now != before
    ]
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def _rows(result: shard_pb2.StepResult) -> list[tuple[list[int], int, int]]:
    """For each row its sampled tokens, its known tokens, and why it stopped."""
    rows, end = [], 0
    for count, known, stop in zip(result.num_sampled_tokens, result.num_known_tokens, result.stop_reasons, strict=True):
        start, end = end, end + count
        rows.append((list(result.sampled_token_ids[start:end]), known, int(stop)))
    return rows


def _told(row: tuple[list[int], int, int]) -> str:
    tokens, known, stop = row
    return f"tokens {tokens} of {known}" + (f", {shard_pb2.StopReason.Name(stop)}" if stop else "")  # type: ignore[arg-type]


def _message(plan: shard_pb2.StepPlan, what: str) -> str:
    return f"plan {plan.step} of epoch {plan.epoch.counter} comes out otherwise: {what}"


if __name__ == "__main__":
    sys.exit(main())
