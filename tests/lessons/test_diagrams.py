"""The lessons' diagrams, drawn for a light and a dark page: every text is inside its box, and none lies on another."""

import importlib
import itertools

import matplotlib.pyplot as plt
import pytest
from matplotlib.transforms import Bbox

from mythos_lite.lessons.display import set_theme
from mythos_lite.lessons.drawing import KINDS, Diagram

MODULES = [importlib.import_module(f"mythos_lite.lessons.diagrams0{lesson}") for lesson in range(1, 7)]
DIAGRAMS = [draw for module in MODULES for draw in module.DIAGRAMS]


@pytest.fixture(params=["light", "dark"])
def theme(request):
    with plt.rc_context():
        set_theme(request.param)
        yield request.param
    plt.close("all")


def misplaced(figure):
    """Texts that leave their box or the figure, and pairs that overlap, a line each."""
    axes = figure.axes[0]
    renderer, back = figure.canvas.get_renderer(), axes.transData.inverted()
    places = []
    for text in axes.texts:
        if text.get_text().strip():
            extent = text.get_window_extent(renderer).transformed(back)
            low_x, high_x, low_y, high_y = extent.xmin, extent.xmax, extent.ymin, extent.ymax
            places.append((text, Bbox([[low_x, low_y], [high_x, high_y]])))
    found = []
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    for text, place in places:
        x, y, w, h = map(float, text.get_gid().split(",")) if text.get_gid() else (0, 0, width, height)
        if place.xmin < x - 0.05 or place.xmax > x + w + 0.05 or place.ymin < y - 0.05 or place.ymax > y + h + 0.05:
            found.append(f"{text.get_text()!r} does not fit into its {'box' if text.get_gid() else 'figure'}")
    for (one, here), (other, there) in itertools.combinations(places, 2):
        overlap = Bbox.intersection(here, there)
        if overlap is not None and overlap.width > 0.2 and overlap.height > 0.4:
            found.append(f"{one.get_text()!r} lies on {other.get_text()!r}")
    return found


@pytest.mark.parametrize("draw", DIAGRAMS, ids=lambda draw: f"{draw.__module__[-2:]}-{draw.__name__}")
def test_texts_of_a_diagram_can_be_read(draw, theme):
    figure = draw()
    assert figure.axes[0].get_title()
    assert misplaced(figure) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__[-2:])
def test_a_lesson_has_at_least_two_diagrams(module):
    assert len(module.DIAGRAMS) >= 2


def test_misplaced_texts_are_found(theme):
    diagram = Diagram(40, 20, "a title")
    diagram.box(2, 2, 6, 4, "much too long")
    diagram.text(20, 10, "one here")
    diagram.text(21, 10, "one there")
    diagram.text(39, 18, "over the edge")
    found = misplaced(diagram.figure)
    assert len(found) == 3
    assert "does not fit into its box" in found[0]
    assert "does not fit into its figure" in found[1]
    assert "lies on" in found[2]


def test_all_kinds_can_be_drawn(theme):
    diagram = Diagram(60, 20, "all kinds")
    boxes = [diagram.box(1 + 7 * place, 2, 6, 4, kind=kind) for place, kind in enumerate(KINDS)]
    diagram.arrow(boxes[0].right, boxes[1].left, kind="cached", dashed=True, bend=0.2)
    diagram.grid(2, 9, 2, 3, 2.5, lambda row, column: "state", lambda row, column: f"{row}{column}")
    diagram.key(2, 17, cached="kept", state="a state")
    assert misplaced(diagram.figure) == []
