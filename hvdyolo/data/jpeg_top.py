"""JPEGs of which no more is decoded than the first rows.

A sequential JPEG is stored from top to bottom, and its decoder stops at the height that its header says.
"""

# ITU-T T.81, table B.1: baseline and extended sequential frames, by Huffman's code. Progressive ones tell of
# all rows in every scan.
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
_MARKER = 0xFF
_START_OF_SCAN = 0xDA
# Of a segment: marker (2 bytes), length (2); then in a frame's header precision (1) and height (2).
_LENGTH, _HEIGHT = 2, 5


def first_rows(encoded: bytes | memoryview, rows: int) -> bytearray | None:
    """The same JPEG, said to have ``rows`` rows, at most those that it has; ``None``: it is not sequential.

    What the decoder does not ask for any more it calls extraneous. The last row may be 1 off where colours
    have half the resolution: they are interpolated with the next one.
    """
    place = 2  # behind the start of the image
    while place + _HEIGHT + 2 <= len(encoded) and encoded[place] == _MARKER:
        kind = encoded[place + 1]
        if kind in _SEQUENTIAL_FRAMES:
            top = bytearray(encoded)
            top[place + _HEIGHT : place + _HEIGHT + 2] = rows.to_bytes(2, "big")
            return top
        if kind == _START_OF_SCAN:
            return None
        place += 2 + int.from_bytes(encoded[place + _LENGTH : place + _LENGTH + 2], "big")
    return None
