"""What can be wrong with a grammar. No ShardErrors: they become answers to a Prepare and do not end a stream."""


class SourceRefused(Exception):
    """A source is malformed, or asks for what is not supported; the text names it in one line."""


class UnusableTokenizer(Exception):
    """Grammars cannot be served with the model's tokenizer; the text says why, in one line."""


class GrammarNotReady(LookupError):
    """A plan names a grammar that is not prepared, or was forgotten."""
