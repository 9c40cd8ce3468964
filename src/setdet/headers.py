"""What the file of a picture says about itself, learnt without decoding it: size, orientation, range, whole or not."""

import mmap
import re
import struct
from collections.abc import Iterator

JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"

_Bytes = bytes | mmap.mmap

_EXIF_ORIENTATION = 0x0112
# Start-of-frame markers hold the size; C4, C8 and CC in that range mean something else.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# FF00 is a byte of pixels, 01 and D0 to D7 stand alone among them, FF pads. Any other begins a segment or ends all.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_JPEG_END = 0xD9
# Kind, width, height, largest value; comments may stand between them.
_PNM_HEADER = re.compile(rb"P([2356])(?:(?:\s|#[^\r\n]*[\r\n])+(\d+)){3}\s")


def stated_size(data: _Bytes) -> tuple[int, int] | None:
    """(height, width) after orientation as a PNG or JPEG file states it; None where it takes decoding."""
    size = jpeg_size(data) if data[:3] == JPEG_START else None
    if data[:8] == _PNG_START and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        size = (height, width)
    if size is None or 0 in size:
        return None
    return size[::-1] if exif_orientation(data) >= 5 else size


def exif_orientation(data: _Bytes) -> int:
    """The EXIF orientation of a JPEG, PNG or WebP file; 1 (upright) where it says none."""
    for block in _exif_blocks(data):
        order = {b"II": "<", b"MM": ">"}.get(block[:2])
        try:
            if order is None:
                continue
            (offset,) = struct.unpack_from(order + "I", block, 4)
            (entries,) = struct.unpack_from(order + "H", block, offset)
            for entry in range(offset + 2, offset + 2 + 12 * entries, 12):
                tag, _, _, value = struct.unpack_from(order + "HHIH", block, entry)
                if tag == _EXIF_ORIENTATION and 1 <= value <= 8:
                    return int(value)
        except struct.error:  # broken metadata says nothing about the pixels
            continue
    return 1


def _exif_blocks(data: _Bytes) -> Iterator[bytes]:
    if data[:3] == JPEG_START:
        for marker, body in _jpeg_segments(data):
            if marker == 0xE1 and body.startswith(b"Exif\0\0"):
                yield body[6:]
    elif data[:8] == _PNG_START:
        position = len(_PNG_START)
        while position + 8 <= len(data):
            length, kind = struct.unpack_from(">I4s", data, position)
            if kind == b"eXIf":
                yield data[position + 8 : position + 8 + length]
            position += 12 + length
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        position = 12
        while position + 8 <= len(data):
            kind, length = struct.unpack_from("<4sI", data, position)
            if kind == b"EXIF":
                yield data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0")
            position += 8 + length + length % 2


def _jpeg_segments(data: _Bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, body) of the segments before the pixels."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker == 0xDA:
            return
        (length,) = struct.unpack_from(">H", data, position + 2)
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + length


def jpeg_is_whole(data: bytes) -> bool:
    """Whether the picture's end marker is there; what comes behind it (a phone's film, a second picture) may be cut.

    Segments are skipped by their length, because a thumbnail in them has an end marker of its own. The pixels of a
    scan have no length: the next marker ends them, another scan's or the end.
    """
    position = 2
    while found := _JPEG_MARKER.search(data, position):
        position = found.end()
        if data[position - 1] == _JPEG_END:
            return True
        if position + 2 <= len(data):
            position += int.from_bytes(data[position : position + 2], "big")
    return False


def jpeg_size(data: _Bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG file's pixels, as they are stored; None where no header says it."""
    for marker, body in _jpeg_segments(data):
        if marker in _JPEG_FRAMES and len(body) >= 5:
            height, width = struct.unpack_from(">HH", body, 1)
            return height, width
    return None


def largest_value(data: _Bytes) -> int | None:
    """The value that stands for white in a PGM or PPM file, such as 4095 of 12 bits.

    None in other files, and where OpenCV scales by it: in those of text with values of less than 8 bits.
    """
    header = _PNM_HEADER.match(data)
    if header is None:
        return None
    value = int(header[2])
    return None if header[1] in (b"2", b"3") and value < 255 else value
