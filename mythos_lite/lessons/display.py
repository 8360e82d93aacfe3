"""Figures with alternative text and a takeaway, tables, and sliders that redraw a figure.

A figure is drawn by a function ``draw(k) -> Figure`` that knows nothing of widgets, so that the slider and its
static twin show the same picture and both can be tested.
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from mythos_lite.measure import plots

DPI = 110


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file; it is closed, so that no notebook shows it a second time."""
    png = plots.to_png(figure, dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return png


def show(figure: Figure, *, alt: str, takeaway: str) -> None:
    """Display a figure with its alternative text, and below it the one sentence to take away.

    Raises:
        ValueError: for an empty text, or a figure without a title.
    """
    for name, text in (("alt", alt), ("takeaway", takeaway)):
        if not text.strip():
            raise ValueError(f"{name} is empty; write what the figure shows")
    if not any(axes.get_title() or axes.get_title("left") for axes in figure.axes) and not figure.get_suptitle():
        raise ValueError("the figure has no title; say in it what to see")
    from IPython.display import Image, Markdown, display  # here, since grading says in a sentence that it is missing

    display(Image(to_png(figure), metadata={"alt": alt}))  # Colab's IPython knows no argument alt
    display(Markdown(f"*{takeaway}*"))


def show_table(table: str) -> None:
    """Display a Markdown table, such as ``mythos_lite.lessons.summary.load_table`` returns."""
    if not table.startswith("|"):
        raise ValueError("table must be a Markdown table, which begins with |")
    from IPython.display import Markdown, display

    display(Markdown(table))


def slider(draw: Callable[..., Figure], **ranges: tuple[int, int, int]):
    """Sliders over whole numbers, ``name=(lowest, highest, start)``, with the figure that ``draw`` makes of them.

    Returns an ``ipywidgets.VBox`` whose last child is the image. An error in ``draw`` is raised, not swallowed.
    """
    import ipywidgets  # here, because it is needed for nothing else

    sliders = {}
    for name, (low, high, first) in ranges.items():
        if not low <= first <= high:
            raise ValueError(f"{name}={(low, high, first)} is not possible: the start must lie in the range")
        sliders[name] = ipywidgets.IntSlider(
            value=first, min=low, max=high, description=name.replace("_", " "), continuous_update=False,
            style={"description_width": "initial"},
        )  # fmt: skip
    image = ipywidgets.Image(format="png")

    def redraw(_change: object = None) -> None:
        image.value = to_png(draw(**{name: control.value for name, control in sliders.items()}))

    for control in sliders.values():
        control.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*sliders.values(), image])
