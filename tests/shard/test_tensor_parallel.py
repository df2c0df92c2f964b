"""Every family shared out among ranks against transformers: ranks are threads here, each with its slices and caches."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from pagewire_shard.errors import BadOption
from pagewire_shard.layers.block import Shared, part_for_rank
from pagewire_shard.layers.cache import CacheSpec, KeyValueCacheSpec
from pagewire_shard.loading.model_loader import LoadedModel, load_model
from pagewire_shard.models.decoder import Decoder
from pagewire_shard.parallel.collectives import Collectives
from pagewire_shard.parallel.ranks import CannotShare, Ranks
from thread_ranks import on_all_ranks

from tests.shard.test_models import CASES, LLAMA, MIXTURES, VOCAB_SIZE, PagedModel, random_model, random_prompts

CPU = torch.device("cpu")
SIZES = {
    "llama-mqa-odd-heads": (3,),
    "falcon-rw": (3,),
    "bloom-odd-heads": (5,),
    "mpt-clipped-odd-heads": (2, 3),
    # Delta nets of two key heads.
    **dict.fromkeys(("qwen3-next", "qwen3-next-dense-layers", "qwen3-5", "qwen3-5-moe"), (2,)),
}
"""Numbers of ranks of the cases that 2 and 4 cannot share out."""
NOT_BY_EXPERT = ("phimoe", "ernie4-5-moe", "hunyuan-moe")
"""Mixtures of five experts, and the one of the default suite."""
NUM_NEW = 8
TWO_RANKS = ("gpt-oss", "olmo2")
"""Cases of the default suite: biases, sinks, copied key-value heads, experts, norms over all heads."""


def continued(model: Decoder, chunk: int) -> tuple[list[torch.Tensor], list[list[int]]]:
    """For each prompt the logits of its tokens [num_tokens, vocab_size], and NUM_NEW tokens behind it."""
    paged = PagedModel(model)
    sequences = [paged.add(prompt) for prompt in random_prompts()]
    paged.compute(sequences, chunk)
    logits = [torch.stack(sequence.logits) for sequence in sequences]
    for _ in range(NUM_NEW):
        for sequence in sequences:
            sequence.tokens.append(int(sequence.logits[-1].argmax()))
        paged.compute(sequences, chunk)
    return logits, [sequence.tokens[-NUM_NEW:] for sequence in sequences]


def unshared_mixers(directory: Path) -> set[str]:
    """Kinds of the model's mixers that ranks cannot share out."""
    spec = load_model(directory, device=CPU, dtype="float32").model.spec
    return {type(layer.mixer).__name__ for layer in spec.layers if not isinstance(layer.mixer, Shared)}


def check_equals_transformers(case: str, size: int, directory: Path, *, by_expert: bool = False) -> None:
    reference = random_model(CASES[case])
    reference.save_pretrained(directory)

    def run(collectives: Collectives) -> tuple[list[torch.Tensor], list[list[int]]]:
        return continued(load_model(directory, device=CPU, dtype="float32", collectives=collectives).model, chunk=7)

    if unshared := unshared_mixers(directory):
        with pytest.raises(BadOption, match=f"layers of {unshared.pop()} .* cannot be shared out"):
            on_all_ranks(size, run)
        return
    on_ranks = on_all_ranks(size, run, by_expert=by_expert)
    for index, prompt in enumerate(random_prompts()):
        tokens = torch.tensor([prompt + on_ranks[0][1][index]])
        with torch.no_grad():
            expected = reference(tokens).logits[0]
        torch.testing.assert_close(on_ranks[0][0][index], expected[: len(prompt)], rtol=1e-4, atol=1e-4)
        assert tokens[0, len(prompt) :].tolist() == expected[len(prompt) - 1 : -1].argmax(1).tolist()
        for logits, new in on_ranks[1:]:
            assert torch.equal(logits[index], on_ranks[0][0][index])  # all ranks sample from the same bits
            assert new[index] == on_ranks[0][1][index]


@pytest.mark.parametrize("case", TWO_RANKS)
def test_two_ranks_equal_transformers(case: str, tmp_path: Path) -> None:
    check_equals_transformers(case, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "size"), [(case, size) for case in CASES for size in SIZES.get(case, (2, 4))])
def test_every_family_equals_transformers(case: str, size: int, tmp_path: Path) -> None:
    check_equals_transformers(case, size, tmp_path)


@pytest.mark.parametrize(
    "case", ["phimoe", *(pytest.param(case, marks=pytest.mark.slow) for case in MIXTURES if case not in NOT_BY_EXPERT)]
)
def test_ranks_that_share_experts_out_equal_transformers(case: str, tmp_path: Path) -> None:
    check_equals_transformers(case, 2, tmp_path, by_expert=True)


def test_dummy_weights_are_the_same_model_on_any_number_of_ranks(tmp_path: Path) -> None:
    transformers.Qwen2MoeConfig(
        **LLAMA,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        architectures=["Qwen2MoeForCausalLM"],
    ).save_pretrained(tmp_path)

    def run(collectives: Collectives | None = None) -> list[torch.Tensor]:
        loaded = load_model(tmp_path, device=CPU, dtype="float32", load_format="dummy", collectives=collectives)
        return continued(loaded.model, chunk=64)[0]

    for alone, shared in zip(run(), on_all_ranks(2, run)[1], strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-5)


def test_a_rank_holds_its_share_of_the_weights(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=1001,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)

    def load(collectives: Collectives | None = None) -> LoadedModel:
        return load_model(tmp_path, device=CPU, dtype="float32", load_format="dummy", collectives=collectives)

    whole = load()
    for shared in on_all_ranks(4, load):
        assert shared.weight_bytes <= whole.weight_bytes / 4 * 1.05
        assert shared.model.spec.layers[0].mixer.cache == KeyValueCacheSpec(1, 32)


def test_a_size_that_does_not_divide_the_model_is_refused_with_those_that_do(tmp_path: Path) -> None:
    transformers.LlamaConfig(**LLAMA, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(BadOption, match=r"size 3: the 4 attention heads of LlamaForCausalLM .* takes 1, 2, 4$"):
        on_all_ranks(3, lambda c: load_model(tmp_path, device=CPU, load_format="dummy", collectives=c))


def test_a_vocabulary_is_padded_by_less_than_a_rank_has() -> None:
    assert [Ranks(0, size).padded_share(VOCAB_SIZE, "tokens") for size in (2, 4)] == [49, 25]
    with pytest.raises(CannotShare, match="4 tokens"):
        Ranks(0, 3).padded_share(4, "tokens")  # two ranks would have all of them


@dataclass(frozen=True)
class RecurrentSpec:
    """A mixer that does not say what a rank has of it."""

    window: int = 0

    @property
    def cache(self) -> CacheSpec:
        raise NotImplementedError


def test_a_mixer_that_is_not_shared_out_is_refused_by_name() -> None:
    with pytest.raises(CannotShare, match="layers of RecurrentSpec"):
        part_for_rank(RecurrentSpec(), Ranks(0, 2))


PEAK = """
import sys, threading, time
from pathlib import Path
import torch
from pagewire_shard.loading.model_loader import load_model
from pagewire_shard.parallel.collectives import Alone
from pagewire_shard.parallel.ranks import Ranks

def own_memory():
    # Not of mapped files: the system takes their pages back when it likes.
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) << 10

class Silent(Alone):
    def __init__(self, rank, size):
        self.ranks = Ranks(rank, size)

def load(**options):
    collectives = Silent(int(sys.argv[2]), int(sys.argv[3]))
    device = torch.device("cpu")
    return load_model(Path(sys.argv[1]), device=device, dtype="float32", collectives=collectives, **options)

# Whatever loading a model takes the first time in a process.
small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
load(load_format="dummy", hf_overrides=small)
peak, before = 0, own_memory()
def watch():
    global peak
    while True:
        peak = max(peak, own_memory() - before)
        time.sleep(0.001)
threading.Thread(target=watch, daemon=True).start()
loaded = load()
time.sleep(0.01)
print(peak, loaded.weight_bytes)
"""


@pytest.mark.slow
def test_a_rank_takes_its_share_of_memory_while_it_reads_a_checkpoint(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=4000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)

    def load(rank: int, size: int) -> tuple[int, int]:
        """Most memory while loading, and what the weights take afterwards, in bytes."""
        words = [sys.executable, "-c", PEAK, str(tmp_path), str(rank), str(size)]
        peak, held = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        return int(peak), int(held)

    (peak_alone, held_alone), (peak, held) = load(0, 1), load(1, 4)
    assert held <= held_alone / 4 * 1.05
    assert peak <= peak_alone / 4 * 1.05 + (16 << 20)  # what the allocator rounds up to
