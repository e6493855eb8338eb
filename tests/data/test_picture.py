import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from torchswat.data.picture import decode
from torchswat.errors import InvalidData

from .fabricate import gradient


def whole(width: int, height: int):
    return (0, 0, width, height), False


@pytest.mark.parametrize("extension", ["png", "bmp", "ppm", "tif", "webp", "jpg"])
def test_every_format_gives_the_same_pixels(tmp_path, extension):
    path = tmp_path / f"picture.{extension}"
    options = {"lossless": True} if extension == "webp" else {}
    Image.fromarray(gradient(32, 32)).save(path, **options)
    pixels = decode(path, 32, whole)
    assert pixels.dtype == np.uint8 and pixels.shape == (32, 32, 3)
    tolerance = 12 if extension == "jpg" else 0
    assert abs(pixels.astype(int) - gradient(32, 32)).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 200 * 257, np.uint16))
    else:
        image = Image.new("RGB", (8, 8), (200, 200, 200)).convert(mode)
    image.save(path)
    pixels = decode(path, 8, whole)
    assert pixels.shape == (8, 8, 3)
    if mode not in "1P":
        assert (pixels == 200).all()


def test_a_palette_with_transparency_is_no_warning(tmp_path):
    image = Image.fromarray(gradient(16, 16)).quantize(8)
    image.save(tmp_path / "picture.png", transparency=bytes([0, 128, 255]))
    assert decode(tmp_path / "picture.png", 16, whole).shape == (16, 16, 3)


def test_the_box_is_cut_out_and_mirrored(tmp_path):
    Image.fromarray(gradient(40, 20)).save(tmp_path / "picture.png")

    def choose(width, height):
        assert (width, height) == (40, 20)
        return (10, 5, 20, 15), True

    np.testing.assert_array_equal(
        decode(tmp_path / "picture.png", 10, choose), gradient(40, 20)[5:15, 10:20][:, ::-1]
    )


@pytest.mark.parametrize("extension", ["png", "webp"])
def test_a_picture_is_seen_as_the_camera_was_held(tmp_path, extension):
    note = Image.Exif()
    note[0x0112] = 6  # to be turned clockwise by a quarter
    options = {"lossless": True} if extension == "webp" else {}
    path = tmp_path / f"picture.{extension}"
    Image.fromarray(gradient(40, 20)).save(path, exif=note, **options)

    def choose(width, height):
        assert (width, height) == (20, 40)
        return (0, 0, 20, 20), False

    np.testing.assert_array_equal(decode(path, 20, choose), np.rot90(gradient(40, 20), -1)[:20])


@pytest.mark.parametrize("note", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0" + bytes(40)])
def test_a_damaged_note_counts_for_nothing(tmp_path, note):
    Image.fromarray(gradient(40, 20)).save(tmp_path / "picture.png", exif=note)
    pixels = decode(tmp_path / "picture.png", 20, lambda width, height: ((0, 0, 20, 20), False))
    np.testing.assert_array_equal(pixels, gradient(40, 20)[:, :20])


def png(width: int, height: int) -> bytes:
    """Write the head of a grey PNG of any claimed size, with next to no pixels behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xd8\xff\xe0", b"a text", png(1000, 1000), png(10_000, 9000), png(60_000, 60_000),
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x01\x00\x00;",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
    ids=["empty", "cut", "text", "no pixels", "large", "bomb", "gif", "postscript"],
)  # fmt: skip
def test_what_is_no_sound_picture(tmp_path, content):
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(InvalidData, match="is not a readable image") as caught:
        decode(path, 8, whole)
    assert str(path) in str(caught.value)


def test_bytes_have_no_name_and_no_address():
    with pytest.raises(InvalidData, match=r"^this is not a readable image \(it is none of JPEG, PNG, "):
        decode(io.BytesIO(b"a text"), 8, whole)


@pytest.mark.parametrize("extension", ["jpg", "png", "bmp", "webp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_picture(tmp_path, extension, share):
    path = tmp_path / f"picture.{extension}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InvalidData, match="is not a readable image"):
        decode(path, 8, whole)
