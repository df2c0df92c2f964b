"""What the engine gets of a device's report: packed tokens, and log-probabilities of those tokens alone."""

import torch
from pagewire_shard.execution.step_report import PendingLogprobs, StepOutput, step_tokens
from pagewire_shard.sampling.logprobs import Gathered

REPORT = torch.tensor(
    [
        # Three rows: two tokens, none, three tokens.
        [11, 7, 22],
        [12, 9, 23],
        [0, 0, 2],
        [2, 0, 3],
        [5, -1, 8],
        [0, -1, 3],
        [-1, -1, 4],
    ]
)


def test_tokens_are_packed_in_order_of_the_rows() -> None:
    tokens = step_tokens(StepOutput(REPORT), 3, forward_us=3, sample_us=4)
    assert tokens.num_computed_tokens == [11, 7, 22]
    assert tokens.num_tokens == [12, 9, 23]
    assert tokens.stop_reasons == [0, 0, 2]
    assert tokens.num_sampled == [2, 0, 3]
    assert tokens.sampled_token_ids == [5, 0, 8, 3, 4]
    assert tokens.logprobs == []
    assert (tokens.forward_us, tokens.sample_us) == (3, 4)


def test_only_sampled_tokens_have_log_probabilities() -> None:
    """Each row has an entry for each token that it could have sampled."""
    tensors = (
        -torch.arange(8.0),
        torch.arange(1, 9),
        torch.arange(16).view(8, 2),
        -torch.arange(16.0).view(8, 2),
    )
    logprobs = PendingLogprobs([0, 0, 0, 1, 2, 2, 2, 2], [2, 2, 2, 1, 0, 0, 0, 0], [Gathered(range(8), tensors)])
    messages = step_tokens(StepOutput(REPORT, logprobs), 3, 0, 0).logprobs
    assert [message.run_index for message in messages] == [0, 0, 2, 2, 2]
    assert [message.logprob for message in messages] == [0, -1, -4, -5, -6]
    assert [message.rank for message in messages] == [1, 2, 5, 6, 7]
    assert [list(message.top_token_ids) for message in messages] == [[0, 1], [2, 3], [], [], []]
    assert list(messages[1].top_logprobs) == [-2, -3]
