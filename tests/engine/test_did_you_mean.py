"""What an error suggests for a mistyped word."""

from engine.did_you_mean import LISTED, nearest


def test_a_long_list_of_valid_words_is_cut():
    words = [f"word{number:04}" for number in range(1000)]
    assert nearest("word7", ["word0007", "other"]) == "; did you mean 'word0007'?"
    assert nearest("xyz", words[:3]) == "; valid: word0000, word0001, word0002"
    cut = nearest("xyz", words)
    assert cut.endswith(f"{words[LISTED - 1]} and 950 more") and len(cut) < 1000
