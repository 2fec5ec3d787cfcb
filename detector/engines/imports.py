"""Import of an engine without what its package brings along: time and memory of every worker and every trial."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def hidden(*names: str) -> Iterator[None]:
    """An import of these packages fails meanwhile, as if they were not installed."""
    kept = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]  # None: an import of it fails, by the language's rules
    try:
        yield
    finally:
        _put_back(kept)


@contextlib.contextmanager
def bare(*names: str) -> Iterator[None]:
    """Modules of these packages are imported meanwhile without the packages' own `__init__`; raises ImportError where
    one is not installed. A later import of a package runs its `__init__`, but modules that were imported here stay as
    they are, with what they then took for missing. A package loaded already is left as it is."""
    kept = {name: sys.modules.get(name) for name in names}
    try:
        for name in names:
            if kept[name] is None:
                spec = importlib.util.find_spec(name)
                if spec is None:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
                sys.modules[name] = importlib.util.module_from_spec(spec)
        yield
    finally:
        _put_back(kept)


def _put_back(modules: dict[str, ModuleType | None]) -> None:
    for name, module in modules.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module
