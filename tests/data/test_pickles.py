import builtins
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchswat.data.pickles import read_pickle
from torchswat.errors import InvalidData

from .fabricate import Python2, random_bytes

ARRAY = random_bytes(3, 4)
CONTENT = {b"data": ARRAY, b"labels": [1, 2, 3], b"label": b"a batch", b"count": 70000}


def refused(path, content: bytes, words: str = "is not a CIFAR file") -> None:
    path.write_bytes(content)
    with pytest.raises(InvalidData, match=words) as caught:
        read_pickle(path)
    assert str(path) in str(caught.value)


def test_what_python_2_wrote(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(Python2().dump(CONTENT))
    content = read_pickle(path)
    np.testing.assert_array_equal(content.pop("data"), ARRAY)
    assert content == {"labels": [1, 2, 3], "label": b"a batch", "count": 70000}


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_python_3_writes(tmp_path, protocol, order):
    path = tmp_path / "batch"
    names = [str(number) for number in range(600)]  # more than a byte of memo numbers
    path.write_bytes(pickle.dumps({"data": np.array(ARRAY, order=order), "names": names}, protocol))
    content = read_pickle(path)
    np.testing.assert_array_equal(content["data"], ARRAY)
    assert content["names"] == names


class Calls:
    """Pickles as a call of a function, as a hostile file would."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch(path) -> str:
    return f"open({str(path)!r}, 'w')"


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("how", ["system", "eval", "exec", "open", "getattr", "import"])
def test_nothing_is_executed(tmp_path, protocol, how):
    mark = tmp_path / "executed"
    call = {
        "system": Calls(os.system, f"touch {mark}"),
        "eval": Calls(builtins.eval, touch(mark)),
        "exec": Calls(builtins.exec, touch(mark)),
        "open": Calls(builtins.open, str(mark), "w"),
        "getattr": Calls(builtins.getattr, "", "join"),
        "import": Calls(__import__, "antigravity"),
    }[how]
    refused(tmp_path / "batch", pickle.dumps({"data": call}, protocol), "not allowed")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "numpy ndarray.tofile", "numpy dtype.__class__", "numpy load", "numpy.core.multiarray scalar",
        "numpy _core.multiarray._reconstruct", "builtins object", "copyreg _reconstructor", "_codecs encode",
    ],
)  # fmt: skip
def test_no_other_name_is_known_however_it_is_spelt(tmp_path, name):
    module, attribute = name.split()
    old = b"\x80\x02}(U\x01xc" + f"{module}\n{attribute}\n".encode() + b"u."
    new = b"\x80\x04}(U\x01x" + b"".join(Python2().text(part.encode()) for part in name.split()) + b"\x93u."
    text = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in name.split())
    refused(tmp_path / "batch", old, "not allowed")
    refused(tmp_path / "batch", new)  # a name that is not even a text
    refused(tmp_path / "batch", b"\x80\x04}(U\x01x" + text + b"\x93u.", "not allowed")


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"
MADE = RECONSTRUCT + b")R"
LARGE = b"J\xff\xff\xff\x7f"  # 2**31 - 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (NDARRAY + b")R", "not callable"),
        (NDARRAY + b")\x81", "NEWOBJ"),
        (NDARRAY + b"}U\x01aK\x01sb", "is not"),  # setting an attribute of a name
        (RECONSTRUCT + b"}U\x08__call__K\x01sb", "is not"),
        (RECONSTRUCT + b"N}U\x09__class__K\x01s\x86b", "is not"),
        (DTYPE + b"U\x01O\x85R", "dtype b'O'"),
        (DTYPE + b"U\x02i8\x85R", "dtype b'i8'"),
        (DTYPE + b"]\x85R", "dtype"),
        (MADE, "array"),  # never filled
        (MADE + b"Nb", "without shape"),
        (MADE + b"(K\x01NNNNtb", "without a dtype"),
        (MADE + b"(K\x01(K\x02t" + DTYPE + b"U\x02u1\x85R\x89U\x01atb", "does not hold 2 bytes"),
        (MADE + b"(K\x01(J\xff\xff\xff\xfft" + DTYPE + b"U\x02u1\x85R\x89U\x01atb", "of shape"),
        (MADE + b"(K\x01(Nt" + DTYPE + b"U\x02u1\x85R\x89U\x01atb", "of shape"),
        (MADE + b"(K\x01(K\x01t" + DTYPE + b"U\x02u1\x85R\x89]tb", "does not hold"),
        (
            MADE + b"(K\x01(" + LARGE * 9 + b"t" + DTYPE + b"U\x02u1\x85R\x89U\x01atb",
            "does not",
        ),
        (b"})" + b"\x85" * 200_000 + b"K\x01s", "200000 tuples"),  # a key whose hash overflows the stack
        (b"r\xff\xff\xff\xff", "memo number"),  # would ask for 64 gigabytes
        (b"\x96" + struct.pack("<Q", 2**40), "is not"),
        (b"T\xff\xff\xff\x7f", "is not"),  # a string of two gigabytes that is not there
        (b"B\xff\xff\xff\xff", "is not"),
        (b"I9\n", "INT"),
        (b"Pmine\n", "PERSID"),
        (b"\x82\x01", "EXT1"),
        (b"K\x01K\x02s", "is not"),  # out of order
        (b"h\x63", "is not"),  # a memo never written
    ],
)
def test_what_is_no_plain_value_is_refused(tmp_path, body, words):
    refused(tmp_path / "batch", b"\x80\x02}(U\x01x" + body + b"u.", words)


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"hello, world", b"\x80\x02].", b"\x80\x02K\x01.", b"\x1f\x8b"]
)
def test_what_is_no_dictionary_is_refused(tmp_path, content):
    refused(tmp_path / "batch", content)


def test_a_key_must_be_a_text(tmp_path):
    refused(tmp_path / "batch", pickle.dumps({7: 1}, 3), "key 7 is not a text")


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "batch"
    with path.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(InvalidData, match="1099511627776 bytes"):
        read_pickle(path)


@given(st.integers(0, 10**6))
def test_every_truncation_is_noticed(tmp_path_factory, cut):
    whole = Python2().dump(CONTENT)
    refused(tmp_path_factory.mktemp("cut") / "batch", whole[: cut % len(whole)])


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_gives_plain_values_or_invalid_data(tmp_path_factory, place, change):
    damaged = bytearray(Python2().dump(CONTENT))
    damaged[place % len(damaged)] ^= change
    path = tmp_path_factory.mktemp("damaged") / "batch"
    path.write_bytes(damaged)
    try:
        content = read_pickle(path)
    except InvalidData:
        return
    assert {type(value) for value in content.values()} <= {
        np.ndarray,
        list,
        bytes,
        int,
        bool,
        type(None),
        dict,
    }


def test_the_writer_of_these_tests_writes_what_pickle_reads():
    content = {b"labels": [1, 2], b"name": b"x" * 300}
    assert pickle.loads(Python2().dump(content), encoding="bytes") == content
