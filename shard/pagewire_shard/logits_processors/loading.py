"""Finds the classes that an operator has named. Nothing else names code that a shard runs."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence as Items
from functools import reduce
from pathlib import Path
from types import ModuleType

from pagewire_shard.errors import BadOption

FLAG = "--logits-processors"
_METHODS = ("apply", "is_argmax_invariant", "update_state")


def load_processors(names: Items[str]) -> list[type]:
    """The classes, in order.

    Args:
        names: "module:Class", as Python imports it, or "path/to/file.py:Class".

    Raises:
        BadOption: one cannot be loaded, or is no logits processor; the message says why.
    """
    return [_load(name) for name in names]


def _load(name: str) -> type:
    place, _, path = name.rpartition(":")
    if not place or not path:
        raise BadOption(f"{FLAG} {name}: accepted: MODULE:CLASS or FILE.py:CLASS")
    try:
        found = reduce(getattr, path.split("."), _module(place))
    except (Exception, SystemExit) as error:  # whatever a module can raise; programs end in sys.exit()
        raise BadOption(f"{FLAG} {name}: it cannot be loaded: {type(error).__name__}: {error}") from error
    # By what it can do: one that is written for vLLM has a base class of vLLM's.
    if not isinstance(found, type) or not all(callable(getattr(found, method, None)) for method in _METHODS):
        raise BadOption(f"{FLAG} {name}: it is no class with the methods {', '.join(_METHODS)}")
    if abstract := getattr(found, "__abstractmethods__", None):
        raise BadOption(f"{FLAG} {name}: it does not define {', '.join(sorted(abstract))}")
    return found


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).resolve()
    # Not the file's own name, by which something else may be imported; and not __main__, so that a program's guarded
    # part does not run.
    name = f"_logits_processors_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if str(path.parent) not in sys.path:  # for what it imports from its own folder
        sys.path.append(str(path.parent))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
