"""What the notebooks share: set-up, predictions, figures, sliders, and exercises that check themselves."""

from mythos_lite.lessons.catalogue import check, solution
from mythos_lite.lessons.display import show, show_table, slider
from mythos_lite.lessons.session import facts, predict, start

__all__ = ["check", "facts", "predict", "show", "show_table", "slider", "solution", "start"]
