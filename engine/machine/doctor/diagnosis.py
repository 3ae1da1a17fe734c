"""A check of `rib doctor` and what it says; none can raise, and none can wait for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Thread

OK, MISSING, WRONG = "ok", "missing", "wrong"


@dataclass(frozen=True)
class Diagnosis:
    """How something is. needed: whether this machine's work is impossible while it is not ok.

    detail: its version, or what is the matter. cure: a command, or what to change.
    """

    state: str
    detail: str
    cure: str = ""
    needed: bool = True

    @property
    def harmful(self) -> bool:
        return self.needed and self.state != OK


@dataclass(frozen=True)
class Check:
    """A row: its name, what the thing is for, who looks, and within how many seconds."""

    name: str
    purpose: str
    look: Callable[[], Diagnosis]
    seconds: float = 30


def examine(checks: Sequence[Check]) -> Iterator[tuple[Check, Diagnosis]]:
    """Every check with its diagnosis, in their order, each as soon as it is known.

    They run side by side, in threads which the end of the program does not wait for.
    """
    results: dict[str, Diagnosis] = {}

    def look(check: Check) -> None:
        try:
            results[check.name] = check.look()
        except Exception as error:  # a broken package can raise anything
            reason = f"the check failed: {type(error).__name__}: {error}"
            results[check.name] = Diagnosis(WRONG, reason, "report this line")

    threads = [Thread(target=look, args=(check,), daemon=True) for check in checks]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for check, thread in zip(checks, threads, strict=True):
        thread.join(max(0.0, start + check.seconds - time.monotonic()))
        late = Diagnosis(WRONG, f"no answer within {check.seconds:g} s", "see what it waits for")
        yield check, results.get(check.name, late)
