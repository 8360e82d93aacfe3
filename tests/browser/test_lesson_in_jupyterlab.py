"""A lesson in JupyterLab, in a real browser: run all cells, type a chain, move a slider, see the figure change.

Run by ``make test-browser``, which says where Chromium is (environment variable CHROMIUM). The screenshot
stays in ``runs/browser.png``.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")
if "CHROMIUM" not in os.environ:
    pytest.skip("the environment variable CHROMIUM does not name a browser", allow_module_level=True)

ROOT = Path(__file__).parents[2]
LESSON = "03_recurrent_loop.ipynb"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
HANDLE = ".jupyter-widgets .noUi-handle"
STDERR = "[data-mime-type='application/vnd.jupyter.stderr']"  # warnings and errors alike
FIELD = ".jupyter-widgets input[type=text]"
FIGURE = ".jupyter-widgets img"
SECONDS = 150


@pytest.fixture
def server(tmp_path):
    """JupyterLab over a copy of the notebooks; its address."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    log = tmp_path / "log"
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # every cell is drawn, whether in view or not
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--ip=127.0.0.1",
        "--IdentityProvider.token=lesson", f"--ServerApp.root_dir={tmp_path / 'notebooks'}",
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with log.open("w") as file:
        folders = {f"JUPYTERLAB_{name}_DIR": str(tmp_path / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, **folders, "CI": "1", "OMP_NUM_THREADS": "1"}
        )
    try:
        yield wait_for_address(log)
    finally:
        process.terminate()
        process.wait(30)


def wait_for_address(log):
    for _ in range(SECONDS):
        if found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text()):
            try:
                urllib.request.urlopen(f"{found[0]}api", timeout=5)
                return found[0]
            except OSError:
                pass
        time.sleep(1)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def test_lesson_runs_and_its_controls_redraw_the_figure(server):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=os.environ["CHROMIUM"], args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(1000 * SECONDS)
        page.goto(f"{server}lab/tree/{LESSON}?token=lesson&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        # Whoever runs cells before there is a kernel is asked to choose one.
        page.locator("#jp-main-statusbar").get_by_text("Idle").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

        handle = page.locator(HANDLE).first
        handle.or_(page.locator(STDERR).first).first.wait_for()
        assert page.locator(STDERR).all_inner_texts() == []
        figure = page.locator(FIGURE).first

        def redraws(change):
            before = figure.get_attribute("src")
            change()
            page.wait_for_function(
                "([selector, before]) => document.querySelector(selector).src !== before", arg=[FIGURE, before]
            )

        def type_in(text):
            page.locator(FIELD).first.fill(text)
            page.keyboard.press("Enter")

        handle.focus()
        redraws(lambda: page.keyboard.press("ArrowRight"))
        redraws(lambda: type_in("6 5 4 3 2 1"))
        type_in("seven")
        page.get_by_text("Write 1 to 12 digits from 0 to 6, with spaces between them.", exact=True).wait_for()
        redraws(lambda: type_in("1 1"))
        assert page.locator(STDERR).all_inner_texts() == []
        figure.scroll_into_view_if_needed()
        (ROOT / "runs").mkdir(exist_ok=True)
        page.screenshot(path=ROOT / "runs" / "browser.png")
        browser.close()
