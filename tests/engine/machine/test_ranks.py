"""What a rank waits for, and what none of them does."""

from pathlib import Path

import pytest

from engine.machine import ranks
from engine.store.artifacts import Artifact


@pytest.fixture
def rank_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """This process is rank 1, and rank 0 tells it of the artefact in this folder."""
    proof = Artifact(tmp_path / "cell").proof
    proof.parent.mkdir()
    proof.touch()
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    monkeypatch.setattr(ranks, "all_agree", lambda vote: True)
    monkeypatch.setattr(ranks, "_from_first", lambda text: str(proof))
    monkeypatch.setattr(ranks, "LOOK_S", 0.01)
    return proof


def test_a_rank_begins_when_it_sees_what_rank_0_wrote(rank_1, monkeypatch):
    """A network file system says for a while that the file is not there."""
    looks, is_file = [], Path.is_file

    def late(path: Path) -> bool:
        looks.append(path)
        return len(looks) > 3 and is_file(path)

    monkeypatch.setattr(Path, "is_file", late)
    assert ranks.first(lambda: rank_1.is_file() and len(looks)) == 5
    assert set(looks) == {rank_1}


def test_a_rank_that_never_sees_it_says_so(rank_1, monkeypatch):
    monkeypatch.setattr(ranks, "SEEN_S", 0.05)
    rank_1.unlink()
    with pytest.raises(FileNotFoundError, match=f"rank 0 wrote {rank_1}, but rank 1 does not see"):
        ranks.first(lambda: pytest.fail("it would make the artefact again"))
