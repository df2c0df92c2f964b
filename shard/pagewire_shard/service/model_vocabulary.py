"""The vocabulary that grammars constrain, as the files of a model describe it."""

from collections.abc import Mapping
from pathlib import Path

from pagewire_common.model_files import TOKENIZER_FILE

from pagewire_shard.errors import ModelError
from pagewire_shard.grammar.vocabulary import VocabularySource


def vocabulary_source(model_dir: Path, files: Mapping[str, bytes]) -> VocabularySource | None:
    """What the model's vocabulary is made of; None: it has no tokenizer, or is none that this shard can run.

    files: those that routers get.
    """
    if TOKENIZER_FILE not in files:
        return None
    # Imports torch, which takes long; whoever calls this is on a thread that may wait for it.
    from pagewire_shard.models.hf_config import describe, read_config_fields
    from pagewire_shard.models.registry import find_family

    try:
        stated = read_config_fields(model_dir)
        architecture, family = find_family(stated)
        config = describe(model_dir, architecture, family.complete(stated), family.quantizations)
    except ModelError:
        return None  # The step thread reads the same files, and reports it.
    return VocabularySource(files[TOKENIZER_FILE].decode(), config.vocab_size, config.eos_token_ids)
