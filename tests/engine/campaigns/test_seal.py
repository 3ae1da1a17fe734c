"""Which files of a report's folder are the report's."""

from engine.campaigns import seal
from engine.machine.files import write_atomic
from helpers.runs_folders import begun


def test_what_a_killed_report_was_writing_is_removed_and_a_users_file_stays(tmp_path):
    place = begun(tmp_path).place
    report = place.report_root.path
    (report / "tables").mkdir(parents=True)
    left = [report / ".table.txt.0a1b2c3d", report / "tables" / ".mri.csv.01234567"]
    own = [report / ".notes.txt.0a1b2c3d", report / ".table.txt.mine", report / "notes.txt"]
    for file in (*left, *own):
        file.write_text("x")
    with seal.sealed(place):
        write_atomic(report / "table.txt", b"1")
        write_atomic(report / "tables" / "mri.csv", b"2")
    assert not any(file.exists() for file in left) and all(file.exists() for file in own)
