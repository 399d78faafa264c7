"""What libjpeg's warnings about a JPEG say of its pixels.

libjpeg decodes nearly anything and warns; Pillow does not hand its warnings on, and TurboJPEG the first only.
"""

_MARKER, _FILL = b"\xff", 0xFF
_END_OF_IMAGE = b"\xff\xd9"
# ITU-T T.81, table B.1.
_APPLICATION, _COMMENT = range(0xE0, 0xF0), 0xFE
_WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xD8))  # a stuffed byte, TEM, RSTn
_LAST_BEFORE_PIXELS = (0xDA, 0xD9)  # SOS, and EOI where there is no scan

# Of jerror.h. By all others a scan's data end too early, are no code, or do not fit its markers.
_HARMLESS = (
    "extraneous bytes before marker 0xd9",  # all pixels were there; some cameras pad
    "Invalid SOS parameters for sequential JPEG",  # as some encoders write them, and decoded all the same
)


def loses_pixels(warning: str) -> bool:
    """Whether what is in the place of some pixels was not in the file, by TurboJPEG's words."""
    return not any(words in warning for words in _HARMLESS)


def without_notes(encoded: bytes) -> bytes:
    """The same pixels without what leads to warnings that have nothing to do with them, and hide others.

    These are application segments (a revision of JFIF or a colour transform that libjpeg does not know),
    comments, stray bytes between the segments before the first scan, and an end that is missing. Colours may
    be others.
    """
    kept = [encoded[:2]]
    place = 2
    while (place := encoded.find(_MARKER, place)) >= 0 and place + 1 < len(encoded):
        kind = encoded[place + 1]
        if kind in _LAST_BEFORE_PIXELS:
            kept.append(encoded[place:])
            break
        if kind == _FILL:
            place += 1
        elif kind in _WITHOUT_LENGTH:
            place += 2
        else:
            end = place + 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
            if kind not in _APPLICATION and kind != _COMMENT:
                kept.append(encoded[place:end])
            place = end
    return b"".join([*kept, _END_OF_IMAGE])
