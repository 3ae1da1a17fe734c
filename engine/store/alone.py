"""Work that a single launch does, however many machines share a store."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from engine.machine import ranks
from engine.store.artifacts import Store
from loaders import locks

log = logging.getLogger(__name__)


@contextlib.contextmanager
def alone(store: Store, name: str) -> Iterator[None]:
    """Keep other launches out of the work `name`, which they find done when they come to it.

    Every rank enters; the first rank holds the lock.
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
