"""Work that only one launch does, even if several machines share a store."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from engine.machine import ranks
from engine.store.artifacts import Store
from loaders.files import locks

log = logging.getLogger(__name__)


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
