"""A shard group of two stages in a scheduling world: the last one samples, the first one is told its tokens late."""

import random
from typing import Any

import torch
from pagewire.v1 import shard_pb2
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_shard.engine.runner import BatchMasks, RunBatch
from pagewire_shard.execution.host_transfer import CpuUplink
from pagewire_shard.execution.stage_tokens import FollowedStep, FollowedTokens, ToldTokens
from pagewire_shard.parallel.pipeline import TokenMail
from scheduling_world import EOS, HashRunner, Rank, World


class LateMail(TokenMail):
    """Mail that is there and may look as if it were not, as if it were on its way."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    @property
    def is_empty(self) -> bool:
        return super().is_empty or self._random.random() < 0.5

    def take(self) -> shard_pb2.StepResult:
        assert not super().is_empty, "a stage waits for a token that has not been sampled"
        return super().take()


class LastStage(HashRunner):
    """The stage that samples."""

    mail: TokenMail

    def launch(self, batch: RunBatch) -> Any:
        self.forward(batch)
        return self.sample(batch)

    def sample(self, batch: RunBatch, masks: BatchMasks | None = None) -> Any:
        tokens = super().sample(batch, masks)
        return ToldTokens(tokens, batch, self.mail.put) if batch.sequences else tokens


class FirstStage(HashRunner):
    """A stage that has the cache of its layers, and samples nothing."""

    samples = False
    followed: FollowedTokens

    def launch(self, batch: RunBatch) -> Any:
        self.followed.catch_up(batch)
        self.forward(batch)
        for slot, query_len in zip(batch.slots, batch.query_lens, strict=True):
            if not self.rows[slot]["stop"]:
                self._run(self.rows[slot], query_len, 0)
        self.begun = None
        return self.followed.begin(batch) if batch.sequences else super().sample(batch)

    def end_epoch(self) -> None:
        super().end_epoch()
        if hasattr(self, "followed"):
            self.followed.end_epoch()

    def append(self, state: object, slots: torch.Tensor, no_tokens: torch.Tensor, ids: torch.Tensor, _: None) -> None:
        assert not no_tokens.any()
        for slot, token in zip(slots.tolist(), ids.tolist(), strict=True):
            row = self.rows[slot]
            if row["stop"]:
                continue
            if token < 0:
                row["stop"] = shard_pb2.STOP_REASON_ERROR
                continue
            row["tokens"].append(token)
            if token == EOS and row["eos"]:
                row["stop"] = shard_pb2.STOP_REASON_TOKEN
            elif len(row["tokens"]) >= row["max_len"]:
                row["stop"] = shard_pb2.STOP_REASON_LENGTH


class StageWorld(World):
    """Both stages collect as late as the protocol allows. If a step needed a token that the last stage has not sampled,
    the first one would wait: the mail asserts that none does."""

    def __init__(self, limits: GroupLimits, window: int, eos_share: float, *args: Any, **options: Any) -> None:
        super().__init__(limits, window, eos_share, *args, **options)
        self.ranks = [
            Rank(limits, eos_share, window, lazy=True, make_runner=make_runner)
            for make_runner in (LastStage, FirstStage)
        ]
        self.grammars._ranks[:] = [rank.grammars for rank in self.ranks]
        mail = LateMail(seed=window)
        last, first = (rank.runner for rank in self.ranks)
        assert isinstance(last, LastStage)
        assert isinstance(first, FirstStage)
        last.mail = mail
        first.followed = FollowedTokens(None, CpuUplink(), mail, first.append)  # type: ignore[arg-type]

    def new_epoch(self) -> None:
        """Steps that were launched are collected before, as the step threads do."""
        for rank in self.ranks:
            rank._collect()
        super().new_epoch()


__all__ = ["FollowedStep", "StageWorld"]
