"""Tables in the terminal: no number is ever cut."""

from engine.report.console import WIDTH, text


def test_numbers_stand_right_under_heads_with_a_word_a_line():
    table = text("lite0", ["", "high contrast", "mRI"], [["FT", "+8.2", "-0.1"], ["LP", "-", ""]])
    assert table.splitlines() == [
        "lite0",
        "",
        "        high",
        "    contrast   mRI",
        "──────────────────",
        "FT      +8.2  -0.1",
        "LP         -",
    ]


def test_numbers_too_wide_for_the_terminal_are_whole_and_heads_too():
    table = text("", ["", *["images"] * 12], [["a row", *["[-12.5, -10.2]"] * 12]])
    heads, _, row = table.splitlines()
    assert heads.split() == ["images"] * 12
    assert row.startswith("a row ") and row.count(" [-12.5, -10.2]") == 12


def test_words_wrap_and_are_taken_literally():
    reason = "the quick brown fox :smile: jumps [b]over[/b] " * 5
    table = text("", ["job", "GPU hours", "reason"], [["a/b", "1.2", reason], ["c", "-", "none"]])
    lines = table.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert " ".join(" ".join(lines[3:-1]).split()) == f"a/b 1.2 {reason.strip()}"
    assert lines[-1].split() == ["c", "-", "none"]
