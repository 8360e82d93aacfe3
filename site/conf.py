"""How Sphinx makes the pages that ``build.py`` has put together; see there."""

from pathlib import Path

HERE = Path(__file__).parent
KATEX = HERE / "node_modules" / "katex" / "dist"

project = "mythos-lite"
html_title = "mythos-lite"
html_short_title = "mythos-lite"
language = "en"
highlight_language = "none"
extensions = ["myst_nb", "sphinxcontrib.katex"]

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # lessons are committed executed
nb_ipywidgets_js = {}  # the scripts that it would load stand on other servers

katex_prerender = True  # formulas are set while the site is built, so that pages run no script for them
katex_js_path = str(KATEX / "katex.min.js")
katex_css_path = "katex/katex.min.css"

html_theme = "furo"
html_static_path = [str(HERE / "static"), str(HERE / "_build" / "static")]
html_extra_path = [str(HERE / "_build" / "extra")]
html_favicon = str(HERE / "static" / "icon.svg")
html_css_files = ["site.css"]
html_js_files = ["site.js"]
templates_path = [str(HERE / "templates")]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_sidebars = {
    "**": [
        "sidebar/brand.html", "sidebar/search.html", "playground.html", "sidebar/scroll-start.html",
        "sidebar/navigation.html", "sidebar/scroll-end.html",
    ]
}  # fmt: skip
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#005a8e", "color-brand-content": "#005a8e"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}
