"""Grammars over the demo model's tokenizer, whose first tokens are special ones."""

import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pagewire_shard
from pagewire.v1 import inference_pb2
from pagewire_shard.grammar.grammars import Grammars, Prepared
from pagewire_shard.grammar.masks import Masks
from pagewire_shard.grammar.matcher import Matcher
from pagewire_shard.grammar.vocabulary import VocabularySource
from tokenizers import Tokenizer

TIMEOUT_S = 30.0
EOS = 1
STOP = 2
"""<|end|>: a special token that is not the model's end of sequence."""
DEMO = Path(pagewire_shard.__file__).parent / "demo_model"
TOKENIZER_JSON = (DEMO / "tokenizer.json").read_text()
TOKENIZER = Tokenizer.from_str(TOKENIZER_JSON)
NUM_TOKENS = TOKENIZER.get_vocab_size()


def demo_source(num_logits: int = NUM_TOKENS) -> VocabularySource:
    return VocabularySource(TOKENIZER_JSON, num_logits, (EOS,))


def outputs(**fields: Any) -> inference_pb2.StructuredOutputs:
    """A message; `choice` may be a list."""
    if isinstance(fields.get("choice"), list):
        fields["choice"] = inference_pb2.Choice(options=fields["choice"])
    return inference_pb2.StructuredOutputs(**fields)


def prepare(grammars: Grammars, name: str, asked: inference_pb2.StructuredOutputs) -> Prepared:
    """Waits until the grammar is prepared, or refused."""
    done: queue.Queue[Prepared] = queue.Queue()
    grammars.prepare(name, asked, done.put)
    return done.get(timeout=TIMEOUT_S)


def encode(text: str) -> list[int]:
    """The text's tokens; special tokens are found by their text."""
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def masks(grammars: Grammars, num_rows: int) -> Masks:
    """Masks that nothing has been written to: all bits are set."""
    return np.full((num_rows, grammars.num_mask_words), -1, dtype=np.int32)


def allowed(mask: Masks) -> list[int]:
    """The tokens that a mask of one row allows."""
    return np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist()


def allowed_next(grammars: Grammars, matcher: Matcher) -> list[int]:
    """The tokens that may come next."""
    row = masks(grammars, 1)
    assert grammars.fill_masks([matcher], row) == [], matcher.error
    return allowed(row[0])


def matches(grammars: Grammars, matcher: Matcher, text: str) -> bool:
    """Whether a text that is generated from here on may end the sequence."""
    fork = matcher.fork()
    return fork.advance(encode(text)) and EOS in allowed_next(grammars, fork)


def texts(token_ids: Sequence[int]) -> list[str]:
    return [TOKENIZER.decode([token_id], skip_special_tokens=False) for token_id in token_ids]
