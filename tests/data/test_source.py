import hashlib

import pytest

from torchswat.data import File, Source, load
from torchswat.data.source import md5
from torchswat.errors import MissingData

CONTENT = b"the official file" * 10**5
DIGEST = hashlib.md5(CONTENT).hexdigest()
ONE = File({"set/one.gz": "0" * 32, "set/one": DIGEST})
TWO = File({"set/two": DIGEST})
SOURCE = Source("made-up", "Made Up", "2 files", read=load, files=(ONE, TWO), page="a page", advice="look")


def test_a_file_is_looked_for_in_all_its_places(tmp_path):
    assert ONE.find(tmp_path) is None and not ONE.is_official(tmp_path)
    (tmp_path / "set" / "one.gz").mkdir(parents=True)  # a folder is no file
    (tmp_path / "set" / "one").write_bytes(CONTENT)
    assert ONE.find(tmp_path) == tmp_path / "set" / "one"
    assert ONE.is_official(tmp_path) and md5(tmp_path / "set" / "one") == DIGEST
    (tmp_path / "set" / "one").write_bytes(CONTENT[:-1])
    assert not ONE.is_official(tmp_path)


def test_what_is_missing_is_told_apart_from_what_is_there(tmp_path):
    with pytest.raises(MissingData, match="Made Up is not in"):
        SOURCE.locate(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "two").write_bytes(CONTENT)
    assert SOURCE.missing(tmp_path) == ["set/one.gz"]
    with pytest.raises(MissingData, match="Made Up is not complete in") as caught:
        SOURCE.locate(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[1] == "Nothing is downloaded silently. From a page get it yourself: look."
    assert lines[2:4] == [f"  missing  md5 {'0' * 32}  set/one.gz", f"  found    md5 {DIGEST}  set/two"]
    assert "TORCHSWAT_DATA" in lines[4]
    (tmp_path / "set" / "one").write_bytes(CONTENT)
    assert SOURCE.locate(tmp_path) == [tmp_path / "set" / "one", tmp_path / "set" / "two"]
