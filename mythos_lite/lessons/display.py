"""Figures with alternative text and a takeaway, tables, folds, and controls that redraw a figure.

A figure is drawn by a function ``draw(...) -> Figure`` that knows nothing of widgets, so that the controls and their
static twin show the same picture and both can be tested.
"""

import base64
import html
import io
from collections.abc import Callable

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image  # comes with matplotlib, which writes its PNG files with it

from mythos_lite.checks import check_choice
from mythos_lite.measure import plots

DPI = 110
THEMES = {
    "light": {"page": "white", "ink": "black", "faint": "#767676"},
    "dark": {"page": "#111111", "ink": "#e8e8e8", "faint": "#9a9a9a"},
}


def set_theme(name: str) -> None:
    """Draw all figures from here on for a light or a dark page.

    Raises:
        ValueError: for another name.
    """
    check_choice("theme", name, tuple(THEMES))
    page, ink, faint = THEMES[name].values()
    of_page = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), page)
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    plt.rcParams.update(of_page | dict.fromkeys(inked, ink) | {"grid.color": faint, "legend.edgecolor": faint})


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file; it is closed, so that no notebook shows it a second time.

    A palette of 128 colours makes the file about half as large, and a lesson carries up to twenty of them.
    """
    png = plots.to_png(figure, dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(buffer, format="png")
    return buffer.getvalue()


def show(figure: Figure, *, alt: str, takeaway: str, folded: str = "") -> None:
    """Display a figure with its alternative text, and below it the one sentence to take away.

    ``folded`` puts both into a fold with these words on it, for what answers a prediction.

    Raises:
        ValueError: for an empty text, or a figure without a title.
    """
    for name, text in (("alt", alt), ("takeaway", takeaway)):
        if not text.strip():
            raise ValueError(f"{name} is empty; write what the figure shows")
    if not any(axes.get_title() or axes.get_title("left") for axes in figure.axes) and not figure.get_suptitle():
        raise ValueError("the figure has no title; say in it what to see")
    from IPython import display as notebook  # here, since grading says in a sentence that it is missing

    png = to_png(figure)
    if folded:
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        fold(folded, f'<img alt="{html.escape(alt)}" src="{source}"><p><i>{html.escape(takeaway)}</i></p>')
        return
    notebook.display(notebook.Image(png, metadata={"alt": alt}))  # Colab's IPython knows no argument alt
    notebook.display(notebook.Markdown(f"*{takeaway}*"))


def show_table(table: str) -> None:
    """Display a Markdown table."""
    if not table.startswith("|"):
        raise ValueError("table must be a Markdown table, which begins with |")
    from IPython.display import Markdown, display

    display(Markdown(table))


def fold(summary: str, content: str, is_open: bool = False) -> None:
    """Display HTML that opens, or closes if it ``is_open``, with a click on ``summary``."""
    from IPython.display import HTML, display

    state = " open" if is_open else ""
    display(HTML(f"<details{state}><summary>{html.escape(summary)}</summary>{content}</details>"))


def hide(text: str) -> None:
    """Put text into the output where tests read it and readers do not: an HTML comment."""
    from IPython.display import HTML, display

    display(HTML(f"<!--\n{text}\n-->"))


def explore(draw: Callable[..., Figure], **controls: object):
    """Controls with the figure that ``draw`` makes of their values, redrawn whenever one of them changes.

    A control is given by name: ``(lowest, highest, start)`` is a slider, over whole numbers if all three are; a text is
    a field to type into; a list is a menu whose first item is chosen. A ``ValueError`` of ``draw``, which says
    what it cannot draw, is shown in place of the figure; any other error is raised.

    Returns an ``ipywidgets.VBox``: the controls, a line for what is wrong, the image.
    """
    import ipywidgets  # here, because it is needed for nothing else

    fields = {name: _control(ipywidgets, name, values) for name, values in controls.items()}
    image, fault = ipywidgets.Image(format="png"), ipywidgets.Label()

    def redraw(_change: object = None) -> None:
        try:
            image.value = to_png(draw(**{name: field.value for name, field in fields.items()}))
            fault.value = ""
        except ValueError as error:
            fault.value = str(error)

    for field in fields.values():
        field.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*fields.values(), fault, image])


def _control(ipywidgets, name: str, values: object):
    look = {"description": name.replace("_", " "), "style": {"description_width": "initial"}}
    if isinstance(values, str):
        return ipywidgets.Text(value=values, continuous_update=False, **look)
    if isinstance(values, list):
        return ipywidgets.Dropdown(options=values, value=values[0], **look)
    low, high, first = values
    if not low <= first <= high:
        raise ValueError(f"{name}={values} is not possible: the start must lie in the range")
    if all(isinstance(value, int) for value in values):
        return ipywidgets.IntSlider(value=first, min=low, max=high, continuous_update=False, **look)
    step = (high - low) / 40
    return ipywidgets.FloatSlider(value=first, min=low, max=high, step=step, continuous_update=False, **look)
