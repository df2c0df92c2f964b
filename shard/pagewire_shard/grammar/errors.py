"""What can be wrong with a grammar. No ShardErrors: they become answers to a Prepare and do not end a stream."""


class GrammarError(Exception):
    """Why there is no grammar, in one line for people."""


class SourceRefused(GrammarError):
    """A source is malformed, or asks for what is not supported, which the text names."""


class TooCostly(GrammarError):
    """A grammar takes more time or memory than the limits allow."""


class NoRoom(TooCostly):
    """Others leave no memory for a grammar, or no turn: the same grammar may be asked for later."""


class Withdrawn(GrammarError):
    """Nobody waits for a grammar any more."""


class CompilerGone(GrammarError):
    """The process that compiles grammars ended, or the shard stops: the same grammar may be asked for again."""


class UnusableTokenizer(GrammarError):
    """Grammars cannot be served with the model's tokenizer."""


class GrammarNotReady(LookupError):
    """A plan names a grammar that is not prepared, or was forgotten."""
