"""Where images and boxes go, by hand and by properties."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hvdyolo.data.layout import canvas_side, lay_out
from hvdyolo.data.placement import (
    Homography,
    View,
    output_boxes,
    place_boxes,
    project,
    project_boxes,
    shift,
    uncovered,
    worth_learning,
)

SIZE = 64


def boxes(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def place(
    sizes: list[tuple[int, int]], rows: list[list[float]], meeting=(1.0, 1.0), **homography: float
) -> np.ndarray:
    """Output boxes of one box in each image."""
    view = View.zoomed(Homography(**homography), canvas_side(len(sizes), SIZE), SIZE)
    tiles = lay_out(sizes, meeting, SIZE, view)
    return output_boxes(place_boxes(boxes(*rows), tiles, [1] * len(rows)), view, SIZE)[0]


def test_a_single_image_is_letterboxed() -> None:
    # 32 x 128 is halved to 16 x 64, with 24 rows above.
    found = place([(32, 128)], [[32, 8, 64, 24]])
    np.testing.assert_allclose(found, boxes([16, 28, 32, 36]))


def test_zoom_is_about_the_middle_and_shift_is_of_it() -> None:
    found = place([(64, 64)], [[32, 32, 48, 40]], zoom=2.0)
    np.testing.assert_allclose(found, boxes([32, 32, 64, 48]))
    found = place([(64, 64)], [[32, 32, 48, 40]], centre_x=0.75, centre_y=0.25)
    np.testing.assert_allclose(found, boxes([48, 16, 64, 24]))


def test_four_images_meet_in_a_corner_each() -> None:
    whole = [[0, 0, 64, 64]] * 4
    # The canvas is 128 x 128, of which the middle shows; they meet at (48, 80), in the output (16, 48).
    found = place([(64, 64)] * 4, whole, (0.75, 1.25))
    np.testing.assert_allclose(
        found, boxes([0, 0, 16, 48], [16, 0, 64, 48], [0, 48, 16, 64], [16, 48, 64, 64])
    )
    # At half the zoom the whole canvas shows, and cuts off what is beyond it.
    found = place([(64, 64)] * 4, whole, (0.75, 1.25), zoom=0.5)
    np.testing.assert_allclose(
        found, boxes([0, 8, 24, 40], [24, 8, 56, 40], [0, 40, 24, 64], [24, 40, 56, 64])
    )


def test_upright_and_flat_images_touch_the_meeting_point_too() -> None:
    # At half the zoom: upright ones are 16 x 32, flat ones 32 x 16, and they meet in (32, 32).
    sizes = [(64, 32), (32, 64), (32, 64), (64, 32)]
    found = place(sizes, [[0, 0, width, height] for height, width in sizes], zoom=0.5)
    np.testing.assert_allclose(
        found, boxes([16, 0, 32, 32], [32, 16, 64, 32], [0, 32, 32, 48], [32, 32, 48, 64])
    )


def test_nine_images_lie_around_the_middle_one() -> None:
    # The middle one is 32 x 64, its place on the canvas of 128 x 128 is x 32 … 96, y 48 … 80.
    sizes = [(64, 64)] * 4 + [(32, 64)] + [(64, 64)] * 4
    found = place(sizes, [[0, 0, width, height] for height, width in sizes], zoom=0.5)
    columns, rows = [(0, 16), (16, 48), (48, 64)], [(0, 24), (24, 40), (40, 64)]
    np.testing.assert_allclose(found, boxes(*[[x1, y1, x2, y2] for y1, y2 in rows for x1, x2 in columns]))


def test_nine_images_are_cut_by_their_row_and_column() -> None:
    # Upright 64 x 32 images beside a flat one show half of their height.
    sizes = [(64, 32)] * 4 + [(32, 64)] + [(64, 32)] * 4
    found = place(sizes, [[0, 0, width, height] for height, width in sizes], zoom=0.5)
    np.testing.assert_allclose(found[4], [16, 24, 48, 40])
    np.testing.assert_allclose(found[3], [0, 24, 16, 40])  # full height would be 16 … 48
    np.testing.assert_allclose(found[5], [48, 24, 64, 40])
    np.testing.assert_allclose(found[1], [24, 0, 40, 24])  # in the middle of the edge
    np.testing.assert_allclose(found[8], [48, 40, 64, 64])


@pytest.mark.parametrize(
    ("homography", "expected"),
    [
        # About the middle (32, 32), a box 8 to 24 right of it and 4 to 8 below: x, y become y, -x.
        ({"rotation": 90.0}, [36, 8, 40, 24]),
        ({"rotation": 180.0}, [8, 24, 24, 28]),
        # x grows by y, which is 4 … 8 from the middle.
        ({"shear_x": 45.0}, [44, 36, 64, 40]),
        ({"shear_y": 45.0}, [40, 44, 56, 64]),
        ({"rotation": 90.0, "zoom": 0.5, "centre_x": 0.75}, [50, 20, 52, 28]),
    ],
)
def test_boxes_are_turned_by_hand(homography: dict[str, float], expected: list[float]) -> None:
    box = [[40.0, 36.0, 56.0, 40.0]]
    np.testing.assert_allclose(place([(64, 64)], box, **homography)[0], expected, atol=1e-9)
    view = View.unzoomed(Homography(**homography), SIZE, SIZE)
    (tile,) = lay_out([(64, 64)], (1.0, 1.0), SIZE, view)
    found, _ = output_boxes(place_boxes(boxes(*box), [tile], [1]), view, SIZE)
    np.testing.assert_allclose(found[0], expected, atol=1e-9)


def test_perspective_by_hand() -> None:
    # The middle stays; a point 16 from it is divided by 1 - 0.25 * 16 / 32 or 1 + 0.25 * 16 / 32.
    matrix = Homography(perspective_x=0.25).perspective(SIZE)
    points, w = project(np.array([[32.0, 32], [48, 48], [16, 16]]), matrix)
    np.testing.assert_allclose(w, [1, 0.875, 1.125])
    np.testing.assert_allclose(points, [[32, 32]] * 3 + np.array([[0], [16 / 0.875], [-16 / 1.125]]))
    # At the right edge of the output lengths along it are 1.25 times those in the middle.
    edge, _ = project(np.array([[64.0, 31], [64, 33]]), np.linalg.inv(matrix))
    assert edge[1, 1] - edge[0, 1] == pytest.approx(2 / 1.25)


homographies = st.builds(
    Homography,
    zoom=st.floats(0.2, 2),
    rotation=st.floats(-180, 180),
    shear_x=st.floats(-30, 30),
    shear_y=st.floats(-30, 30),
    centre_x=st.floats(0.2, 0.8),
    centre_y=st.floats(0.2, 0.8),
    perspective_x=st.floats(-0.25, 0.25),
    perspective_y=st.floats(-0.25, 0.25),
)


@given(homographies, st.booleans())
def test_the_view_is_what_the_output_shows(homography: Homography, zoomed: bool) -> None:
    view = (View.zoomed if zoomed else View.unzoomed)(homography, 2 * SIZE, SIZE)
    if view.to_output is None:
        assert homography.scales_only
        assert (view.width, view.height) == (SIZE, SIZE)
        return
    corners = np.array([[x, y] for x in (0.0, SIZE) for y in (0.0, SIZE)])
    seen, w = project(corners, np.linalg.inv(view.to_output))
    assert (1 / w > 0).all()  # no horizon between them
    # With an edge of two pixels, but not beyond the canvas, however far the output looks.
    side = view.zoom * view.canvas
    left_top = -side / 2 - np.array(view.origin)
    of_canvas = seen.clip(left_top, left_top + side)
    assert (of_canvas >= 1).all()
    assert (of_canvas <= [view.width - 1, view.height - 1]).all()
    assert max(view.width, view.height) <= side + 6
    assert (of_canvas.min(0) <= 4).all()
    assert (of_canvas.max(0) >= [view.width - 4, view.height - 4]).all()
    # The middle of the canvas goes where it should, but for perspective.
    middle, _ = project(np.array([[-view.origin[0], -view.origin[1]]]), view.to_output)
    before, _ = project(middle, np.linalg.inv(homography.perspective(SIZE)))
    np.testing.assert_allclose(before[0], [homography.centre_x * SIZE, homography.centre_y * SIZE], atol=1e-6)


@given(
    homographies,
    st.lists(st.tuples(*[st.floats(-400, 400)] * 2, *[st.floats(3, 800)] * 2), min_size=1, max_size=4),
)
def test_a_box_bounds_all_of_it_that_shows(homography: Homography, rows: list[tuple[float, ...]]) -> None:
    view = View.unzoomed(homography, 2 * SIZE, SIZE)
    if view.to_output is None:
        return
    corners = np.array([[x, y, x + w, y + h] for x, y, w, h in rows])
    found = project_boxes(corners, view.to_output, SIZE).clip(0, SIZE)
    # Wherever the output shows a point of the box, it lies in the box's bounds, however near the horizon.
    grid = np.stack(np.meshgrid(np.linspace(0, SIZE, 33), np.linspace(0, SIZE, 33)), axis=-1).reshape(-1, 2)
    sources, _ = project(grid, np.linalg.inv(view.to_output))
    for corner, bounds in zip(corners, found, strict=True):
        shows = grid[((sources >= corner[:2]) & (sources <= corner[2:])).all(1)]
        assert (shows >= bounds[:2] - 1e-6).all()
        assert (shows <= bounds[2:] + 1e-6).all()


@given(homographies, st.tuples(*[st.floats(0, 50)] * 2, *[st.floats(4, 60)] * 2))
def test_what_is_worth_learning_does_not_depend_on_the_view(
    homography: Homography, row: tuple[float, ...]
) -> None:
    x, y, width, height = row
    results = []
    for view in (View.zoomed(homography, SIZE, SIZE), View.unzoomed(homography, SIZE, SIZE)):
        # Of the canvas, about its middle, into the view.
        corners = (boxes([x, y, x + width, y + height]) - SIZE / 2) * view.zoom - np.tile(view.origin, 2)
        results.append(output_boxes(corners, view, SIZE))
    (first, first_kept), (second, second_kept) = results
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert first_kept.tolist() == second_kept.tolist()


def test_what_is_behind_the_horizon_has_no_size() -> None:
    homography = Homography(perspective_x=0.25)
    view = View.unzoomed(homography, 2 * SIZE, SIZE)
    assert view.to_output is not None
    # w is 0 four half sizes right of the middle.
    horizon = 4 * SIZE / 2 - view.origin[0]
    behind, through = boxes([horizon + 1, 0, horizon + 99, 50], [horizon - 140, 0, horizon + 99, 50])
    found = project_boxes(np.stack([behind, through]), view.to_output, SIZE)
    assert found[0].tolist() == [0, 0, 0, 0]
    assert found[1, 2] > SIZE  # goes on beyond the right edge
    assert found[1, 0] < SIZE
    assert np.isfinite(found).all()


@given(
    st.lists(st.tuples(st.integers(10, 200), st.integers(10, 200)), min_size=9, max_size=9),
    st.sampled_from([4, 9]),
    st.tuples(st.floats(0.5, 1.499), st.floats(0.5, 1.499)),
    st.floats(0.4, 2),
)
@example(
    [(10, 10), (10, 10), (10, 15), *[(10, 10)] * 6], 9, (1.0, 1.109375), 0.7
)  # an edge on a pixel's centre
def test_tiles_and_what_they_leave_uncovered_do_not_overlap(
    sizes: list[tuple[int, int]], count: int, meeting: tuple[float, float], zoom: float
) -> None:
    view = View.zoomed(Homography(zoom=zoom), 2 * SIZE, SIZE)
    tiles = [tile for tile in lay_out(sizes[:count], meeting, SIZE, view) if tile.visible]
    for shown in (tiles, tiles[1:], tiles[::2]):  # images that are damaged do not show
        times = np.zeros((SIZE, SIZE), dtype=int)
        for tile in shown:
            times[tile.down.start : tile.down.stop, tile.across.start : tile.across.stop] += 1
        assert times.max(initial=0) <= 1
        for rows, columns in uncovered(shown, SIZE, SIZE):
            times[rows, columns] += 1
        assert (times == 1).all()


def test_what_is_uncovered_of_a_view_that_is_no_square() -> None:
    view = View.zoomed(Homography(zoom=0.7, shear_x=30), 2 * SIZE, SIZE)
    assert view.width != view.height
    tiles = [tile for tile in lay_out([(30, 60)] * 4, (1.1, 0.9), SIZE, view) if tile.visible]
    times = np.zeros((view.height, view.width), dtype=int)
    for tile in tiles:
        times[tile.down.start : tile.down.stop, tile.across.start : tile.across.stop] += 1
    assert times.min() == 0
    for rows, columns in uncovered(tiles, view.height, view.width):
        times[rows, columns] += 1
    assert (times == 1).all()


@given(st.sampled_from([4, 9]), st.tuples(st.floats(0.5, 1.499), st.floats(0.5, 1.499)), st.floats(1, 2))
def test_square_tiles_leave_no_gap(count: int, meeting: tuple[float, float], zoom: float) -> None:
    view = View.zoomed(Homography(zoom=zoom), 2 * SIZE, SIZE)
    covered = np.zeros((SIZE, SIZE), dtype=int)
    for tile in lay_out([(50, 50)] * count, meeting, SIZE, view):
        covered[tile.down.start : tile.down.stop, tile.across.start : tile.across.stop] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize(
    ("after", "worth"),
    [
        ([0, 0, 40, 40], True),
        ([0, 0, 2.1, 90], True),
        ([0, 0, 2, 90], False),  # a side of 2 pixels
        ([0, 0, 90, 2], False),
        ([0, 0, 12.7, 12.7], True),  # a tenth of the area is 160
        ([0, 0, 12.6, 12.6], False),
        ([0, 0, 2.5, 249], True),
        ([0, 0, 2.5, 251], False),  # aspect above 100
        ([7, 7, 7, 7], False),
    ],
)
def test_what_is_worth_learning(after: list[float], worth: bool) -> None:
    assert worth_learning(boxes([0, 0, 40, 40]), boxes(after)).tolist() == [worth]


def test_no_boxes_stay_none() -> None:
    none = boxes()
    for homography in (Homography(), Homography(rotation=10), Homography(perspective_x=0.2)):
        found, kept = output_boxes(none, View.zoomed(homography, SIZE, SIZE), SIZE)
        assert found.shape == (0, 4)
        assert kept.shape == (0,)


def test_shift_moves_points() -> None:
    points, w = project(np.array([[1.0, 2.0]]), shift(3, -4))
    assert points.tolist() == [[4, -2]]
    assert w.tolist() == [1]
