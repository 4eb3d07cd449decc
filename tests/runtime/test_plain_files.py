"""Small files that are written at once."""

import json
import resource
from pathlib import Path

import pytest

from bitsweep.runtime.file_by_file import load_evidence, make_files, note_lost
from bitsweep.runtime.plain_files import write_whole


@pytest.fixture
def little_room() -> object:
    """Files of this process end after 64 bytes, as those of one do that is killed while it writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path, little_room: object) -> None:
    write_whole(tmp_path / "it.json", '"old"')
    with pytest.raises(OSError):
        write_whole(tmp_path / "it.json", "x" * 100)
    assert (tmp_path / "it.json").read_text() == '"old"'


def test_what_is_known_of_missing_files_is_never_half_of_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    make_files({"first": lambda path: json.loads("")}, tmp_path)
    (known,) = load_evidence(tmp_path).missing.items()
    request.getfixturevalue("little_room")
    with pytest.raises(OSError):
        note_lost(tmp_path, "") or make_files({"a" * 40: Path.touch}, tmp_path)
    assert load_evidence(tmp_path).missing == dict([known])
