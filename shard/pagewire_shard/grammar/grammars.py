"""The grammars that plans may name: compiled beside the plans, and kept for those who ask again."""

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from pagewire.v1 import inference_pb2

from pagewire_shard.grammar.compile_process import CompileProcess, Job
from pagewire_shard.grammar.compiler import CompiledGrammar, compiled_matcher
from pagewire_shard.grammar.errors import GrammarError, GrammarNotReady, NoRoom, SourceRefused, TooCostly, Withdrawn
from pagewire_shard.grammar.limits import GrammarLimits
from pagewire_shard.grammar.masks import MaskFiller, Masks
from pagewire_shard.grammar.matcher import Matcher
from pagewire_shard.grammar.roots import MIN_ROOT_BYTES, Key, Root, RootCache
from pagewire_shard.grammar.stats import GrammarStats
from pagewire_shard.grammar.vocabulary import Vocabulary, VocabularySource

logger = logging.getLogger(__name__)

NUM_BUILDERS = 2
"""Threads that build, in this process, what the compiler has found good."""
MAX_REFUSALS = 1024
"""Refused sources that are remembered, so that asking again costs nothing."""
COSTLY_MEMORY_S = 60.0
"""How long it is remembered that a source is too costly, which depends on what else runs."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of a grammar, as the message of this name says it."""

    name: str
    code: grpc.StatusCode
    message: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody who waits for a grammar."""

    name: str
    on_done: Callable[[Prepared], None]
    since_s: float


@dataclass(slots=True, eq=False)
class _Compiling:
    """A source that is being compiled."""

    asked: list[Asked]
    job: Job | None = None


@dataclass(frozen=True, slots=True)
class _Refused:
    """Why a source was refused, and until when that holds."""

    error: GrammarError
    until_s: float


@dataclass(frozen=True, slots=True)
class _Open:
    """What there is once the vocabulary is known."""

    vocabulary: Vocabulary
    filler: MaskFiller
    compiler: CompileProcess


class Grammars:
    """Prepares grammars and keeps them by name until they are forgotten. Thread-safe.

    A source is compiled in a process that can be killed (CompileProcess), and then built here, on a thread that drops
    the GIL. Names belong to an epoch; what was compiled outlives it.
    """

    def __init__(
        self,
        limits: GrammarLimits | None = None,
        *,
        coerce_one_of: bool = False,
        lenient: bool = False,
        num_threads: int | None = None,
    ) -> None:
        """coerce_one_of, lenient: see SourceOptions. num_threads: fill masks; None: 80 % of the cores, at most 32."""
        self.stats = GrammarStats()
        self._limits = limits or GrammarLimits()
        self._coerce_one_of, self._lenient = coerce_one_of, lenient
        self._num_threads = num_threads
        self._opened: _Open | None = None
        self._lock = threading.Lock()
        self._roots = RootCache(self._limits.cache_bytes)
        self._waiting: dict[Key, _Compiling] = {}
        """Who waits for what is being compiled."""
        self._refused: dict[Key, _Refused] = {}
        self._renewing: set[Key] = set()
        """Grammars whose lexer was full and that are being built anew."""
        self._builders = ThreadPoolExecutor(NUM_BUILDERS, thread_name_prefix="grammar")

    def open(self, source: VocabularySource) -> None:
        """Makes the vocabulary, which takes some 10 us a token and holds the GIL. Called once, before anything else.

        Raises UnusableTokenizer.
        """
        vocabulary = Vocabulary(source)
        compiler = CompileProcess(source, self._limits, coerce_one_of=self._coerce_one_of, lenient=self._lenient)
        self._opened = _Open(vocabulary, MaskFiller(vocabulary, self._num_threads), compiler)

    @property
    def num_mask_words(self) -> int:
        """Width of a mask: words of 32 tokens that the model has logits for."""
        return self._parts.vocabulary.num_mask_words

    def prepare(self, name: str, outputs: inference_pb2.StructuredOutputs, on_done: Callable[[Prepared], None]) -> None:
        """Begins to prepare a grammar, and returns at once. on_done is called once, on another thread.

        Until then, and if it fails, the name is not ready.
        """
        source = outputs.SerializeToString(deterministic=True)
        key = hashlib.sha256(source).digest()
        asked = Asked(name, on_done, time.monotonic())
        with self._lock:
            self._roots.name(name, key)
            refused = self._refused.get(key)
            if key in self._roots:
                self._builders.submit(self._answer, [asked], None, "cached")
            elif refused is not None and refused.until_s > asked.since_s:
                self._builders.submit(self._answer, [asked], refused.error, "cached")
            elif key in self._waiting:
                self._waiting[key].asked.append(asked)
            else:
                compiling = self._waiting[key] = _Compiling([asked])
                compiling.job = self._parts.compiler.submit(source, lambda done: self._take(key, compiling, done))

    def forget(self, names: Iterable[str]) -> None:
        """No plan will name these again. Who waits for one of them is answered at once, and it is not compiled."""
        withdrawn: list[Asked] = []
        with self._lock:
            for name in names:
                key = self._roots.forget(name)
                compiling = None if key is None else self._waiting.get(key)
                if key is None or compiling is None:
                    continue
                withdrawn += [asked for asked in compiling.asked if asked.name == name]
                compiling.asked = [asked for asked in compiling.asked if asked.name != name]
                if not compiling.asked:
                    del self._waiting[key]
                    if compiling.job is not None:
                        self._parts.compiler.withdraw(compiling.job)
        if withdrawn:
            self._builders.submit(self._answer, withdrawn, Withdrawn("the grammar was forgotten"), "compiled")

    def end_epoch(self) -> None:
        """Forgets all names."""
        with self._lock:
            self._roots.forget_all()

    def matcher(self, name: str, end_token_ids: Collection[int]) -> Matcher:
        """The state of a sequence that has generated nothing yet. Takes microseconds.

        end_token_ids: tokens at which the sequence stops (StopConditions.token_ids).

        Raises GrammarNotReady.
        """
        with self._lock:
            found = self._roots.named(name)
        if found is None:
            raise GrammarNotReady(f"grammar {name!r} is not prepared")
        key, root = found
        matcher = Matcher(root.ll_matcher.deep_copy(), self._parts.vocabulary.eos_token_ids, end_token_ids)
        matcher.origin = key, root
        return matcher

    def advance(self, matchers: Sequence[Matcher], token_ids: Sequence[list[int]]) -> None:
        """Has each matcher take in its tokens; see MaskFiller.advance."""
        self._parts.filler.advance(matchers, token_ids)

    def fill_masks(self, matchers: Sequence[Matcher | None], masks: Masks) -> list[int]:
        """Writes the mask of each matcher into its row; see MaskFiller.fill."""
        failed = self._parts.filler.fill(matchers, masks)
        for row in failed:
            self._renew_lexer_of(matchers[row])
        return failed

    def count(self) -> GrammarStats:
        """The counters, brought up to date."""
        with self._lock:
            self.stats.num_waiting = len(self._waiting)
            self.stats.num_cached = len(self._roots)
            self.stats.num_cached_bytes = self._roots.num_bytes
        if self._opened is not None:
            self.stats.num_process_starts = self._opened.compiler.num_starts
        return self.stats

    def close(self) -> None:
        """Ends threads and the process that compiles. Whoever waits for a grammar gets an error."""
        if self._opened is not None:
            self._opened.compiler.close()
        self._builders.shutdown()

    def _renew_lexer_of(self, matcher: Matcher | None) -> None:
        """Has a grammar built anew if its lexer is full.

        All sequences of a grammar share one lexer, which grows with what they generate. Once it is at its limit they
        all end; those that come after them must not.
        """
        if matcher is None or "lexer" not in matcher.error.lower() or matcher.origin is None:
            return
        key, root = matcher.origin
        with self._lock:
            if self._roots.get(key) is not root or key in self._renewing:
                return
            self._renewing.add(key)
        logger.warning("the lexer of a grammar is full, and it is built anew: %s", matcher.error)
        self._builders.submit(self._renew, key, root)

    def _renew(self, key: Key, full: Root) -> None:
        try:
            renewed = Root(compiled_matcher(self._parts.vocabulary, full.text), full.num_bytes, full.text)
            with self._lock:
                self._roots.replace(key, renewed)
        finally:
            self._renewing.discard(key)

    @property
    def _parts(self) -> _Open:
        assert self._opened is not None, "open comes first"
        return self._opened

    def _take(self, key: Key, compiling: _Compiling, compiled: CompiledGrammar | GrammarError) -> None:
        """What the compiler has made of a source. Called on its thread, or where the job was submitted."""
        self._builders.submit(self._build, key, compiling, compiled)

    def _build(self, key: Key, compiling: _Compiling, compiled: CompiledGrammar | GrammarError) -> None:
        error: GrammarError | None = None
        root: Root | None = None
        if isinstance(compiled, GrammarError):
            error = compiled
        else:
            try:
                ll_matcher = compiled_matcher(self._parts.vocabulary, compiled.text)
                root = Root(ll_matcher, max(MIN_ROOT_BYTES, compiled.num_bytes), compiled.text)
            except GrammarError as unexpected:
                error = unexpected
        with self._lock:
            if root is not None and not self._roots.put(key, root):
                error = NoRoom("grammars in use take all memory that the shard keeps for them; ask again later")
            if error is not None:
                self._remember(key, error)
            if self._waiting.get(key) is compiling:
                del self._waiting[key]
            waiting = compiling.asked
        self._answer(waiting, error, "compiled")

    def _remember(self, key: Key, error: GrammarError) -> None:
        match error:
            case SourceRefused():
                until_s = math.inf
            case TooCostly() if not isinstance(error, NoRoom):
                until_s = time.monotonic() + COSTLY_MEMORY_S
            case _:
                return
        self._refused.pop(key, None)
        if len(self._refused) >= MAX_REFUSALS:
            del self._refused[next(iter(self._refused))]
        self._refused[key] = _Refused(error, until_s)

    def _answer(self, waiting: list[Asked], error: GrammarError | None, how: str) -> None:
        outcome, code = _outcome(error, how)
        for asked in waiting:
            with self._lock:
                self.stats.num_prepared[outcome] += 1
                self.stats.prepare_s.observe(time.monotonic() - asked.since_s)
            try:
                asked.on_done(Prepared(asked.name, code, "" if error is None else str(error)))
            except Exception:  # one listener's fault must not keep the others waiting
                logger.exception("the answer to Prepare %r was not taken", asked.name)


def _outcome(error: GrammarError | None, how: str) -> tuple[str, grpc.StatusCode]:
    """The outcome of a Prepare, one of OUTCOMES, and the code of its answer."""
    match error:
        case None:
            return how, grpc.StatusCode.OK
        case SourceRefused():
            return "refused", grpc.StatusCode.INVALID_ARGUMENT
        case TooCostly():
            return "too_costly", grpc.StatusCode.RESOURCE_EXHAUSTED
        case Withdrawn():
            return "failed", grpc.StatusCode.CANCELLED
        case _:
            return "failed", grpc.StatusCode.UNAVAILABLE
