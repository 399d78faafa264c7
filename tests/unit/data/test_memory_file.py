import io

from hypothesis import given
from hypothesis import strategies as st

from hvdyolo.data.memory_file import MemoryFile

PLACES = st.integers(0, 60)
STEPS = st.lists(
    st.tuples(st.just("write"), PLACES, st.binary(min_size=1, max_size=20))
    | st.tuples(st.just("read"), PLACES, st.integers(0, 30))
    | st.tuples(st.just("truncate"), PLACES, st.none())
)


@given(STEPS)
def test_it_is_a_file(steps: list[tuple[str, int, bytes | int | None]]) -> None:
    """As Python's own, except that it can be read beyond its end, where nothing is but zeros."""
    ours, theirs = MemoryFile(), io.BytesIO()
    for what, place, value in steps:
        if what == "truncate":
            theirs.write(bytes(max(place - theirs.seek(0, io.SEEK_END), 0)))
            assert ours.truncate(place) == theirs.truncate(place)
            continue
        assert ours.seek(place) == theirs.seek(place)
        if isinstance(value, bytes):
            assert ours.write(value) == theirs.write(value)
        elif isinstance(value, int):
            found = bytearray(b"x" * value)
            assert ours.readinto(found) == value
            assert bytes(found) == theirs.read(value).ljust(value, b"\0")
            theirs.seek(place + value)
        assert ours.tell() == theirs.tell()
        assert ours.seek(0, io.SEEK_END) == len(theirs.getvalue())
    whole = bytearray(ours.size)
    for place, piece in ours.pieces():
        whole[place : place + len(piece)] = piece
    assert whole == theirs.getvalue()


def test_a_hole_takes_no_room() -> None:
    file = MemoryFile()
    file.write(b"first")
    file.seek(1 << 50)
    file.write(b"last")
    assert list(file.pieces()) == [(0, b"first"), (1 << 50, b"last")]
    assert file.size == (1 << 50) + 4
