"""Trains the bundled demo model: a small Llama on public-domain books and generated modern English.

    cd tools && python -m demo_model.train --out ../shard/pagewire_shard/demo_model

Minutes on a data-centre GPU, hours on a CPU. The corpus needs Debian's apt-get once; it is kept in --corpus-dir.
"""

import argparse
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from demo_model import export
from demo_model.corpus import Corpus, build_corpus

SHAPES = ((64, 512), (64, 512), (64, 512), (16, 2048))
"""Batch and window of the steps in turn: mostly short, every fourth as long as the context, so that RoPE learns it."""
EVALUATION_SHAPE = (8, 512)
HELD_OUT = 0.02
SHARES = {"austen": 0.24, "kjv": 0.16, "modern": 0.38, "chats": 0.22}
"""Share of each source in the training tokens, whatever its size."""
WARMUP = 0.03
"""Share of training in which the learning rate rises."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """The settings of the command line."""

    out: Path
    corpus_dir: Path
    device: str
    steps: int
    minutes: float
    """Training ends after this many minutes even if steps are left; the learning rate follows."""
    seed: int
    learning_rate: float
    num_modern: int
    """Number of generated texts; half as many conversations are generated."""
    compile: bool


@dataclass(slots=True)
class TokenSource:
    """One source's documents, tokenized and strung together."""

    train: torch.Tensor
    """[T] int64 on the training device."""
    held_out: torch.Tensor
    """[T'] likewise."""

    def windows(self, batch: int, length: int) -> torch.Tensor:
        """[batch, length] training tokens from random places."""
        starts = torch.randint(len(self.train) - length, (batch, 1), device=self.train.device)
        return self.train[starts + torch.arange(length, device=self.train.device)]


@dataclass(slots=True)
class Progress:
    """How much of the training is done, by steps or by the clock, whichever is further."""

    config: TrainingConfig
    step: int = 0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.started_s) / 60

    @property
    def done(self) -> float:
        return max(self.step / self.config.steps, self.minutes / self.config.minutes)

    @property
    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to a twentieth of the peak."""
        done = min(self.done, 1.0)
        warm = min(1.0, (done + 1e-3) / WARMUP)
        return self.config.learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def tokenize_corpus(corpus: Corpus, tokenizer: Tokenizer, device: str) -> dict[str, TokenSource]:
    """Token streams by source: books and texts as BOS ... EOS, conversations as the chat template writes them."""
    texts = {name: [text + export.EOS for text in getattr(corpus, name)] for name in ("austen", "kjv", "modern")}
    texts["chats"] = [export.render_chat(messages).removeprefix(export.BOS) for messages in corpus.chats]
    sources = {}
    for name, documents in texts.items():
        ids = [encoding.ids for encoding in tokenizer.encode_batch(documents)]
        border = max(1, int(len(ids) * HELD_OUT))
        train, held_out = (
            torch.tensor([token for document in part for token in document], device=device)
            for part in (ids[border:], ids[:border])
        )
        sources[name] = TokenSource(train, held_out)
        print(f"{name}: {len(documents)} documents, {len(train)} training tokens, {len(held_out)} held out", flush=True)
    return sources


def build_model(config: TrainingConfig) -> LlamaForCausalLM:
    """A randomly initialised model in float32 on the training device."""
    torch.manual_seed(config.seed)
    shape = LlamaConfig(
        vocab_size=export.VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=export.MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=export.SPECIAL_TOKENS.index(export.BOS),
        eos_token_id=export.SPECIAL_TOKENS.index(export.EOS),
    )
    return LlamaForCausalLM(shape).to(config.device)


def sample_batch(sources: dict[str, TokenSource], batch: int, length: int, rng: random.Random) -> torch.Tensor:
    """[batch, length] tokens, rows drawn from the sources by their shares."""
    names = rng.choices(list(SHARES), weights=list(SHARES.values()), k=batch)
    return torch.cat([sources[name].windows(names.count(name), length) for name in SHARES if name in names])


def train(model: LlamaForCausalLM, sources: dict[str, TokenSource], config: TrainingConfig) -> Progress:
    """AdamW (decay on matrices only), bf16 autocast on a GPU, gradient clipping; reports held-out losses on the way."""
    rng = random.Random(config.seed)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
    forward = torch.compile(model) if config.compile else model
    progress = Progress(config)
    while progress.done < 1:
        batch = sample_batch(sources, *SHAPES[progress.step % len(SHAPES)], rng)
        for group in optimizer.param_groups:
            group["lr"] = progress.learning_rate
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=batch.is_cuda):
            loss = forward(batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        if progress.step % max(1, config.steps // 20) == 0:
            losses = format_losses(held_out_losses(model, sources))
            print(
                f"step {progress.step}, {progress.minutes:.1f} min, loss {loss.item():.3f}, held out: {losses}",
                flush=True,
            )
    return progress


@torch.no_grad()
def held_out_losses(model: LlamaForCausalLM, sources: dict[str, TokenSource]) -> dict[str, float]:
    """Mean loss in nats per token on the start of each source's held-out stream."""
    batch, length = EVALUATION_SHAPE
    losses = {}
    for name, source in sources.items():
        rows = min(batch, len(source.held_out) // length)
        window = source.held_out[: rows * length].view(rows, length)
        losses[name] = model(window, labels=window, use_cache=False).loss.item()
    return losses


def format_losses(losses: dict[str, float]) -> str:
    """Returns the losses as text for the log."""
    return ", ".join(f"{name} {loss:.2f}" for name, loss in losses.items())


def write_card(config: TrainingConfig, model: LlamaForCausalLM, progress: Progress, losses: dict[str, float]) -> None:
    """Writes README.md, with samples from the directory as written."""
    shape = model.config
    device = torch.cuda.get_device_name() if config.device == "cuda" else "a CPU"
    card = export.CARD.format(
        num_parameters=model.num_parameters() / 1e6,
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        mlp=shape.intermediate_size,
        heads=shape.num_attention_heads,
        kv_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        vocab=shape.vocab_size,
        positions=shape.max_position_embeddings,
        megabytes=export.directory_megabytes(config.out),
        bos=export.BOS,
        end=export.END,
        eos=export.EOS,
        steps=progress.step,
        minutes=progress.minutes,
        device=device,
        losses=format_losses(losses),
        samples=export.write_samples(config.out, config.seed),
        **SHARES,
    )
    (config.out / "README.md").write_text(card, encoding="utf-8")
    print(card)


def parse_arguments() -> TrainingConfig:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write the model to")
    parser.add_argument(
        "--corpus-dir", type=Path, default=Path("build/demo-corpus"), help="keeps downloads and extracted texts"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--steps", type=int, default=1600, help="of 32,768 tokens; the books are learnt by heart later")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop training after so many minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="at its peak")
    parser.add_argument("--num-modern", type=int, default=60_000, help="texts to generate; half as many conversations")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    arguments = vars(parser.parse_args())
    if arguments["device"] == "auto":
        arguments["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    return TrainingConfig(**arguments)


def main() -> None:
    """Corpus, tokenizer, training, files, card."""
    config = parse_arguments()
    config.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(config.seed)
    corpus = build_corpus(config.corpus_dir, config.num_modern, config.num_modern // 2, rng)
    tokenizer = export.train_tokenizer(corpus.austen + corpus.kjv[: len(corpus.kjv) // 2] + corpus.modern)
    sources = tokenize_corpus(corpus, tokenizer, config.device)
    model = build_model(config)
    progress = train(model, sources, config)
    losses = held_out_losses(model, sources)
    export.write_tokenizer(tokenizer, config.out)
    export.write_model(model, config.out)
    write_card(config, model, progress, losses)


if __name__ == "__main__":
    main()
