"""Garbage collection in a process that serves."""

import gc


def spare_long_lived_objects() -> None:
    """Keeps the garbage collector from walking modules, models and tokenizers again and again: it would stop everything
    for milliseconds, while requests make hardly any cycles. To be called when these have been loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
