"""Beam search by scheduler, engine and a real model: what transformers finds, whatever else runs or is short."""

import pytest
from beam_reference import Found, Search, check_equal, search
from pagewire_router.scheduling.sequence import SequenceGroup
from random_models import VOCAB_SIZE, random_prompts
from subject import Subject

PROMPTS = random_prompts((5, 33, 16))
LIKELY = tuple(range(0, VOCAB_SIZE, 6))
"""Tokens that end a beam, so many that one of them does soon."""


def submit(world, subject: Subject, prompt: list[int], wanted: Search, **options: object) -> SequenceGroup:
    return world.submit(prompt, eos_token_ids=wanted.eos_token_ids, **wanted.options(VOCAB_SIZE), **options)


def expected(subject: Subject, prompt: list[int], wanted: Search) -> list[Found]:
    return search(subject.reference.model, prompt, wanted)


SEARCHES = {
    "greedy": Search(1, eos_token_ids=LIKELY),
    "two, no end": Search(2, num_return_sequences=2),
    "four, likely end": Search(4, num_return_sequences=4, eos_token_ids=LIKELY, early_stopping=True),
    "five, long preferred": Search(5, length_penalty=2.0, early_stopping="never", eos_token_ids=(7, 8)),
    "eight, not too short": Search(8, num_return_sequences=3, min_new_tokens=6, eos_token_ids=LIKELY),
    "thirty-two": Search(32, max_new_tokens=6, num_return_sequences=32, eos_token_ids=(3,)),
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("block_size", [4, 16])
def test_beams_are_those_of_transformers(llama: Subject, name: str, block_size: int) -> None:
    wanted = SEARCHES[name]
    world = llama.world(block_size=block_size, max_num_seqs=40, window=2)
    groups = [submit(world, llama, prompt, wanted) for prompt in PROMPTS]
    world.run()
    for prompt, group in zip(PROMPTS, groups, strict=True):
        hypotheses = group.beams.search.hypotheses[: wanted.num_return_sequences]
        check_equal(hypotheses, expected(llama, prompt, wanted), wanted)
