"""Assignment by hand at the edges of every rule, and against a plain loop in exact arithmetic."""

import pickle
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdyolo.objective.assign import Assigner, Labels, LevelMatches

# One level of stride 8 on an input 64 wide and 32 high: 8 columns, 4 rows.
HEIGHT, WIDTH, COLUMNS, ROWS = 32, 64, 8, 4


def assigner(*anchors: tuple[float, float], strides: tuple[int, ...] = (8,), threshold=4.0) -> Assigner:
    values = np.array(anchors, np.float32).reshape(len(strides), -1, 2)
    return Assigner(strides, values, threshold)


def label(x: float, y: float, width: float, height: float, number: int = 0) -> list[float]:
    """A row from pixels."""
    return [number, x / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT]


def image(*rows: list[float]) -> Labels:
    return np.array(rows, np.float32).reshape(-1, 5)


def assign(*rows: list[float], anchors: Iterable[tuple[float, float]] = ((16, 16),)) -> LevelMatches:
    (matches,) = assigner(*anchors)([image(*rows)], HEIGHT, WIDTH)
    return matches


def places(matches: LevelMatches) -> list[tuple[int, int]]:
    """(column, row) of each match at a level with one anchor."""
    return [(int(cell % COLUMNS), int(cell // COLUMNS % ROWS)) for cell in matches.cell]


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (20, 12, [(2, 1)]),  # the middle of a cell: neither side is nearer
        (18, 10, [(2, 1), (1, 1), (2, 0)]),
        (22, 10, [(2, 1), (2, 0), (3, 1)]),
        (18, 14, [(2, 1), (1, 1), (2, 2)]),
        (22, 14, [(2, 1), (3, 1), (2, 2)]),
        (20, 10, [(2, 1), (2, 0)]),
        (19.5, 12, [(2, 1), (1, 1)]),  # 3.5 of 8 is below one half,
        (20.5, 12, [(2, 1), (3, 1)]),  # 4.5 above
        (2, 2, [(0, 0)]),  # no neighbours outside the grid
        (62, 30, [(7, 3)]),
        (2, 30, [(0, 3)]),
        (6, 26, [(0, 3), (0, 2), (1, 3)]),
        (58, 6, [(7, 0), (6, 0), (7, 1)]),
        (10, 2, [(1, 0), (0, 0)]),
        (54, 30, [(6, 3), (7, 3)]),
        # On the border of two cells: the one before, and the own once more.
        (16, 12, [(2, 1), (1, 1), (2, 1)]),
        (20, 16, [(2, 2), (2, 1), (2, 2)]),
        (16, 16, [(2, 2), (1, 2), (2, 1), (2, 2), (2, 2)]),
        (8, 12, [(1, 1), (1, 1)]),  # none before the second cell's border, in the published comparison
        (56, 12, [(7, 1), (6, 1)]),
        # On the border of the picture.
        (0, 12, [(0, 1), (0, 1)]),
        (64, 12, [(7, 1), (7, 1)]),
        (20, 32, [(2, 3), (2, 3)]),
    ],
)
def test_own_cell_and_nearer_neighbours(x: float, y: float, expected: list[tuple[int, int]]) -> None:
    assert places(assign(label(x, y, 16, 16))) == expected


def test_boxes_are_told_from_the_assigned_cell() -> None:
    matches = assign(label(18, 14, 24, 8, number=5))
    # Own cell, left, down; in cells of 8 pixels.
    assert matches.box_cxcywh.tolist() == [
        [0.25, 0.75, 3, 1],
        [1.25, 0.75, 3, 1],
        [0.25, -0.25, 3, 1],
    ]
    assert matches.anchor_wh.tolist() == [[2, 2]] * 3
    assert matches.label.tolist() == [5, 5, 5]
    assert matches.keeps_objectness.all()


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [
        (16, 16, True),
        (63.5, 16, True),
        (64, 16, False),  # exactly four times
        (16, 64, False),
        (4.25, 16, True),
        (4, 16, False),  # exactly a quarter
        (16, 4, False),
        (63.5, 4.25, True),
        (64, 4, False),
        (0, 16, False),
    ],
)
def test_anchor_takes_boxes_less_than_four_times_different(width: float, height: float, fits: bool) -> None:
    # Not clipped to the image: labels of a crop may be as large.
    assert len(assign(label(20, 12, width, height)).cell) == fits


def test_threshold_is_a_setting() -> None:
    row = image(label(20, 12, 33, 16))
    assert len(assigner((16, 16))([row], HEIGHT, WIDTH)[0].cell) == 1
    assert len(assigner((16, 16), threshold=2.0)([row], HEIGHT, WIDTH)[0].cell) == 0


def test_index_counts_images_anchors_rows_columns() -> None:
    assign = assigner((16, 16), (40, 40), (500, 500))
    (matches,) = assign([image(), image(label(20, 12, 20, 20))], HEIGHT, WIDTH, first_image=5)
    # Image 6, anchors 0 and 1, row 1, column 2.
    assert matches.cell.tolist() == [((6 * 3 + anchor) * ROWS + 1) * COLUMNS + 2 for anchor in (0, 1)]
    assert matches.anchor_wh.tolist() == [[2, 2], [5, 5]]


def test_levels_have_their_own_grids_and_anchors() -> None:
    assign = assigner((16, 16), (32, 64), strides=(8, 16))
    fine, coarse = assign([image(label(20, 12, 30, 30))], HEIGHT, WIDTH)
    assert fine.cell.tolist() == [1 * 8 + 2]
    # In cells of 16: centre (1.25, 0.75) in column 1, row 0; left and down follow.
    assert coarse.cell.tolist() == [1, 0, 1 * 4 + 1]
    assert coarse.anchor_wh.tolist() == [[2, 4]] * 3
    assert coarse.box_cxcywh[1].tolist() == [1.25, 0.75, 1.875, 1.875]


def kept(matches: LevelMatches) -> dict[tuple[int, int], int]:
    """Label that sets the objectness of each cell."""
    return {
        place: int(number)
        for place, number, keeps in zip(places(matches), matches.label, matches.keeps_objectness, strict=True)
        if keeps
    }


def test_of_like_boxes_the_last_row_sets_objectness() -> None:
    first, second = label(20, 12, 16, 16, 1), label(20, 12, 20, 20, 2)
    matches = assign(first, second)
    assert matches.label.tolist() == [1, 2]
    assert matches.keeps_objectness.tolist() == [False, True]
    assert kept(assign(second, first)) == {(2, 1): 1}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ((20, 12), (25, 12)),  # own cell, left
        ((25, 12), (20, 17)),  # left, up
        ((20, 17), (15, 12)),  # up, right
        ((15, 12), (20, 7)),  # right, down
    ],
)
def test_offset_counts_before_row(
    earlier: tuple[float, float], later: tuple[float, float], reverse: bool
) -> None:
    rows = [label(*earlier, 16, 16, 1), label(*later, 16, 16, 2)]
    assert kept(assign(*(reversed(rows) if reverse else rows)))[2, 1] == 2


def test_no_labels() -> None:
    for labels in ([], [image()], [image(), image()]):
        (matches,) = assigner((16, 16))(labels, HEIGHT, WIDTH)
        assert matches.cell.shape == (0,)
        assert matches.box_cxcywh.shape == (0, 4)
        assert matches.anchor_wh.shape == (0, 2)
        assert matches.keeps_objectness.dtype == np.bool_


def test_a_centre_on_the_far_border_is_told_from_the_last_cell() -> None:
    assert assign(label(64, 12, 16, 16)).box_cxcywh.tolist() == [[1, 0.5, 2, 2]] * 2


def test_types_and_pickling() -> None:
    assign = pickle.loads(pickle.dumps(assigner((16, 16))))  # as it travels to loader workers
    (matches,) = assign([image(label(20, 12, 16, 16))], HEIGHT, WIDTH)
    assert (matches.cell.dtype, matches.label.dtype) == (np.int64, np.int64)
    assert (matches.box_cxcywh.dtype, matches.anchor_wh.dtype) == (np.float32, np.float32)


# Sixteenths of a cell, so every comparison is exact; sizes include exactly four times an anchor.
ROW = st.tuples(
    st.integers(0, 2),
    st.integers(0, 16 * COLUMNS),
    st.integers(0, 16 * ROWS),
    st.sampled_from([0, 2, 4, 8, 16, 24, 40, 64]),
    st.sampled_from([0, 2, 4, 8, 16, 24, 40, 64]),
)
ANCHORS = ((16, 16), (6, 10), (40, 8))


def plain_assignment(images: list[list[tuple[int, ...]]], first_image: int) -> list[tuple[object, ...]]:
    """(cell, box, anchor, label) of every match, in the order in which they overwrite one another."""
    matches = []
    for offset in ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1)):
        for anchor, (anchor_width, anchor_height) in enumerate(ANCHORS):
            for number, rows in enumerate(images):
                for name, x16, y16, width, height in rows:
                    if 0 in (width, height):
                        continue
                    ratios = [Fraction(width, anchor_width), Fraction(height, anchor_height)]
                    if max(max(ratio, 1 / ratio) for ratio in ratios) >= 4:
                        continue
                    x, y = Fraction(x16, 16), Fraction(y16, 16)
                    half = Fraction(1, 2)
                    near = {
                        (0, 0): True,
                        (-1, 0): x % 1 < half and x > 1,
                        (0, -1): y % 1 < half and y > 1,
                        (1, 0): (COLUMNS - x) % 1 < half and COLUMNS - x > 1,
                        (0, 1): (ROWS - y) % 1 < half and ROWS - y > 1,
                    }
                    if not near[offset]:
                        continue
                    column = min(int(x + half * offset[0]), COLUMNS - 1)
                    row = min(int(y + half * offset[1]), ROWS - 1)
                    cell = (((first_image + number) * len(ANCHORS) + anchor) * ROWS + row) * COLUMNS + column
                    box = tuple(map(float, (x - column, y - row, width / 8, height / 8)))
                    matches.append((cell, box, (anchor_width / 8, anchor_height / 8), name))
    return matches


def listed(matches: LevelMatches) -> list[tuple[object, ...]]:
    return [
        (int(cell), tuple(box.tolist()), tuple(anchor.tolist()), int(name))
        for cell, box, anchor, name in zip(
            matches.cell, matches.box_cxcywh, matches.anchor_wh, matches.label, strict=True
        )
    ]


def arrays(images: list[list[tuple[int, ...]]]) -> list[Labels]:
    return [image(*(label(x / 2, y / 2, w, h, name) for name, x, y, w, h in rows)) for rows in images]


@given(st.lists(st.lists(ROW, max_size=6), max_size=4), st.integers(0, 3))
def test_equals_the_plain_loop(images: list[list[tuple[int, ...]]], first_image: int) -> None:
    (matches,) = assigner(*ANCHORS)(arrays(images), HEIGHT, WIDTH, first_image)
    expected = plain_assignment(images, first_image)
    assert listed(matches) == [
        (cell, box, tuple(np.float32(anchor).tolist()), name) for cell, box, anchor, name in expected
    ]
    last = {cell: place for place, (cell, *_) in enumerate(expected)}
    assert matches.keeps_objectness.nonzero()[0].tolist() == sorted(last.values())


@given(st.lists(st.lists(ROW, max_size=6), min_size=1, max_size=6), st.data())
def test_workers_may_split_a_batch_anywhere(images: list[list[tuple[int, ...]]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(images)))
    assign, labels = assigner(*ANCHORS), arrays(images)
    (whole,) = assign(labels, HEIGHT, WIDTH)
    parts = [
        assign(labels[:cut], HEIGHT, WIDTH)[0],
        assign(labels[cut:], HEIGHT, WIDTH, first_image=cut)[0],
    ]

    def with_keeps(level: LevelMatches) -> list[tuple[object, ...]]:
        return [(*row, bool(keeps)) for row, keeps in zip(listed(level), level.keeps_objectness, strict=True)]

    assert sorted(with_keeps(whole)) == sorted(with_keeps(parts[0]) + with_keeps(parts[1]))
