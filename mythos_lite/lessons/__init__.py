"""What the notebooks share: set-up, predictions, figures, controls, and exercises that check themselves."""

from mythos_lite.lessons.catalogue import built, check
from mythos_lite.lessons.display import explore, show, show_table
from mythos_lite.lessons.session import compare, facts, predict, start

__all__ = ["built", "check", "compare", "explore", "facts", "predict", "show", "show_table", "start"]
