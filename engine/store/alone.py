"""Work that only one launch does, even if several machines share a store."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from engine.machine import ranks
from engine.store.artifacts import Store
from loaders.files import locks

log = logging.getLogger(__name__)
Found = TypeVar("Found")


def find_or_make(
    store: Store,
    asked: tuple[str, str, Mapping[str, Any]],
    find: Callable[[], Found | None],
    make: Callable[[], Found],
) -> Found:
    """Returns what `find` returns or, if that is None, what one launch makes with `make`.

    asked: kind, label and key of the artefact; its folder's name is the lock's. Every rank calls
    this, `find` and `make`.
    """
    if (found := find()) is not None:
        return found
    with alone(store, store.place(*asked).name):
        found = find()  # another launch may have made it meanwhile
        return make() if found is None else found


@contextlib.contextmanager
def alone(store: Store, name: str) -> Iterator[None]:
    """Excludes other launches from the work `name`; they find it done when they get there.

    All ranks enter; rank 0 holds the lock.
    """
    path = store.root / "locks" / name
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            if ranks.rank() == 0:
                stack.enter_context(locks.held(path, wait, store.files))

        def wait() -> None:
            log.info("%s: waiting for another launch (%s)", name, locks.holder(path))

        ranks.first(lock)
        yield
