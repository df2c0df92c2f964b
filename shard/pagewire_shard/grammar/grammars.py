"""The grammars that plans may name."""

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from llguidance import LLMatcher
from pagewire.v1 import inference_pb2

from pagewire_shard.grammar.errors import GrammarNotReady, SourceRefused
from pagewire_shard.grammar.limits import parser_limits
from pagewire_shard.grammar.masks import MaskFiller, Masks
from pagewire_shard.grammar.matcher import Matcher
from pagewire_shard.grammar.sources import SourceOptions, grammar_text
from pagewire_shard.grammar.vocabulary import Vocabulary, VocabularySource


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of a grammar, as the message of this name says it."""

    name: str
    code: grpc.StatusCode
    message: str = ""


class Grammars:
    """Prepares grammars beside the plans and keeps them by name until they are forgotten. Thread-safe.

    Names belong to an epoch; what was compiled outlives it.
    """

    def __init__(self, *, num_threads: int | None = None) -> None:
        """num_threads: threads that fill masks; None: 80 % of the cores, at most 32."""
        self._num_threads = num_threads
        self._opened: tuple[Vocabulary, MaskFiller] | None = None
        self._lock = threading.Lock()
        self._roots: dict[str, LLMatcher] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def open(self, source: VocabularySource) -> None:
        """Makes the vocabulary, which takes some 10 us a token and holds the GIL. Called once, before anything else.

        Raises UnusableTokenizer.
        """
        vocabulary = Vocabulary(source)
        self._opened = vocabulary, MaskFiller(vocabulary, self._num_threads)

    @property
    def num_mask_words(self) -> int:
        """Width of a mask: words of 32 tokens that the model has logits for."""
        return self._vocabulary.num_mask_words

    def prepare(self, name: str, outputs: inference_pb2.StructuredOutputs, on_done: Callable[[Prepared], None]) -> None:
        """Begins to prepare a grammar, and returns at once. `on_done` is called once, on a thread of this object's."""
        self._threads.submit(self._prepare, name, outputs, on_done)

    def forget(self, names: Iterable[str]) -> None:
        """No plan will name these again."""
        with self._lock:
            for name in names:
                self._roots.pop(name, None)

    def end_epoch(self) -> None:
        """Forgets all names."""
        with self._lock:
            self._roots.clear()

    def matcher(self, name: str, end_token_ids: Collection[int]) -> Matcher:
        """The state of a sequence that has generated nothing yet. Takes microseconds.

        end_token_ids: tokens at which the sequence stops (StopConditions.token_ids).

        Raises GrammarNotReady.
        """
        with self._lock:
            root = self._roots.get(name)
        if root is None:
            raise GrammarNotReady(f"grammar {name!r} is not prepared")
        return Matcher(root.deep_copy(), self._vocabulary.eos_token_ids, end_token_ids)

    def fill_masks(self, matchers: Sequence[Matcher | None], masks: Masks) -> list[int]:
        """Writes the mask of each matcher into its row; see MaskFiller.fill."""
        _, filler = self._open_parts()
        return filler.fill(matchers, masks)

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(cancel_futures=True)

    @property
    def _vocabulary(self) -> Vocabulary:
        return self._open_parts()[0]

    def _open_parts(self) -> tuple[Vocabulary, MaskFiller]:
        assert self._opened is not None, "open comes first"
        return self._opened

    def _prepare(
        self, name: str, outputs: inference_pb2.StructuredOutputs, on_done: Callable[[Prepared], None]
    ) -> None:
        try:
            text = grammar_text(outputs, SourceOptions({}, self._vocabulary.eos_token_ids))
        except SourceRefused as error:
            on_done(Prepared(name, grpc.StatusCode.INVALID_ARGUMENT, str(error)))
            return
        root = LLMatcher(self._vocabulary.tokenizer, text, log_level=0, limits=parser_limits())
        if root.is_error():
            on_done(Prepared(name, grpc.StatusCode.INVALID_ARGUMENT, root.get_error()))
            return
        with self._lock:
            self._roots[name] = root
        on_done(Prepared(name, grpc.StatusCode.OK))
