"""What log-probabilities of prompts have to be: compared with the log-softmax of a transformers model."""

import torch
from model_world import ModelWorld
from pagewire_router.scheduling.sequence import SequenceGroup
from subject import Subject


def check_prompt_scores(subject: Subject, world: ModelWorld, group: SequenceGroup, atol: float = 1e-4) -> None:
    """Each position but the first came once, in order, and says what the reference says."""
    prompt, num_top = group.request.prompt_token_ids, group.request.params.prompt_logprobs
    with torch.no_grad():
        logits = subject.reference.model(torch.tensor([prompt], device=subject.device)).logits
    expected = logits[0, :-1].float().cpu().log_softmax(-1)
    position = 1
    for scores in world.prompt_scores.get(group, ()):
        num = len(scores.logprobs)
        assert (scores.first_position, scores.num_top, num > 0) == (position, num_top, True)
        assert (len(scores.ranks), len(scores.top_token_ids), len(scores.top_logprobs)) == (num, *[num * num_top] * 2)
        rows = expected[position - 1 : position - 1 + num]
        chosen = rows.gather(1, torch.tensor(prompt[position : position + num])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(scores.logprobs), chosen, atol=atol, rtol=0)
        ranked = rows.sort(descending=True).values
        at_rank = ranked.gather(1, torch.tensor(scores.ranks)[:, None] - 1)[:, 0]
        torch.testing.assert_close(at_rank, chosen, atol=atol, rtol=0)
        top = torch.tensor(scores.top_logprobs).view(num, num_top)
        torch.testing.assert_close(top, ranked[:, :num_top], atol=atol, rtol=0)
        top_ids = torch.tensor(list(scores.top_token_ids), dtype=torch.int64).view(num, num_top)
        torch.testing.assert_close(rows.gather(1, top_ids), top, atol=atol, rtol=0)
        position += num
    assert position == len(prompt)
