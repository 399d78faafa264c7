"""Any name the file system allows comes back, chunk by chunk."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hvdyolo.engine.image_list import encode_names, list_name, open_image_list, write_image_list

# Names are bytes to the system; os.fsdecode gives lone surrogates where they are not UTF-8.
NAMES = st.lists(
    st.binary(min_size=1, max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    min_size=1,
    max_size=30,
)


@given(names=NAMES, chunk=st.integers(1, 8))
def test_names_come_back_by_chunk(tmp_path_factory, names: list[str], chunk: int) -> None:
    out: Path = tmp_path_factory.mktemp("out")
    content = encode_names(names)
    write_image_list(out, content)
    write_image_list(out, content)
    images = open_image_list(out / list_name(content), content, chunk)
    expected = [names[first : first + chunk] for first in range(0, len(names), chunk)]
    assert [images.names(number) for number in range(len(expected))] == expected
    assert len(images.offsets) == len(expected) + 1


def test_other_names_have_another_file(tmp_path: Path) -> None:
    assert list_name(encode_names(["a", "b"])) != list_name(encode_names(["a\nb"]))
    assert list_name(encode_names(["a", "b"])) != list_name(encode_names(["b", "a"]))
