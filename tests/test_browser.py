"""The study in a real browser: JupyterLab's explorer and notebooks, and the docs without a network."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "build" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHORTER = {"points = 3000": "points = 800", "identities = None": "identities = 300"}  # of 03_buckets
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt install chromium)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on copies of the notebooks without outputs: what is seen later was made here."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
                for long, short in SHORTER.items():
                    cell.source = cell.source.replace(long, short)
        nbformat.write(notebook, folder / "notebooks" / path.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        f"--port={port}", "--ServerApp.port_retries=0",
        "--IdentityProvider.token=", "--ServerApp.password=", "--LabApp.news_url=",
    ]  # fmt: skip
    results = folder / "results"  # the committed ones, without runs of an earlier time
    results.mkdir()
    for sweep in (ROOT / "data" / "results").iterdir():
        if sweep.name != "scratch":
            (results / sweep.name).symlink_to(sweep)
    settings = {
        "BONLIB_RESULTS": str(results),
        "BONLIB_FIGURES": str(folder / "figures"),
        "BONLIB_DATA": str(ROOT / "data"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "OMP_NUM_THREADS": "1",
    }
    chosen = {  # no news, and all cells on the page, not just those in sight
        "apputils-extension/notification": {"fetchNews": "false"},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }
    for name, setting in chosen.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(setting))
    log = (folder / "lab.log").open("w")
    process = subprocess.Popen(
        command, cwd=folder / "notebooks", env=os.environ | settings, stdout=log, stderr=subprocess.STDOUT
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "lab.log").read_text()[-2000:]
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def start_all(page, address: str, notebook: str, *, restart: bool = False) -> None:
    """Open a notebook and run all its cells, perhaps in a kernel that is started anew."""
    page.goto(f"{address}/lab/tree/{notebook}?reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90_000)
    page.locator(".jp-StatusBar-Widget", has_text=re.compile(r"\| Idle")).wait_for(timeout=90_000)
    page.wait_for_timeout(2000)
    if restart:
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.get_by_role("menuitem", name=re.compile("^Restart Kernel and Run All")).click()
        return page.locator(".jp-Dialog button.jp-mod-accept").click()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name=re.compile(r"^Run All Cells")).click()
    dialog = page.locator("dialog", has_text="Select Kernel")
    if dialog.count():  # the session was not quite there yet
        dialog.get_by_role("button", name="Select Kernel").click()


def run_all(page, address: str, notebook: str, minutes: float, *, restart: bool = False) -> None:
    """Open a notebook, run all its cells, and wait until each has its number."""
    start_all(page, address, notebook, restart=restart)
    page.wait_for_timeout(2000)
    prompts = page.locator(".jp-CodeCell .jp-InputArea-prompt")
    deadline = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline:
        assert not page.locator("dialog").count(), page.locator("dialog").inner_text()
        if all(re.search(r"\d", text) for text in prompts.all_inner_texts()):
            return page.wait_for_timeout(1500)
        page.wait_for_timeout(1000)
    raise AssertionError(f"{notebook} was not done after {minutes} minutes: {tracebacks(page).all_inner_texts()}")


def tracebacks(page):
    """JupyterLab shows an error as it shows what is written to stderr."""
    return page.locator("[data-mime-type='application/vnd.jupyter.stderr']", has_text="Traceback")


def pictures_and_errors(page) -> tuple[int, int]:
    return page.locator(".jp-CodeCell .jp-OutputArea-output img").count(), tracebacks(page).count()


@pytest.fixture(scope="module")
def site():
    """The docs as `make docs` builds them, before these tests; two builds at once would write the same copies."""
    folder = ROOT / "build" / "site"
    assert (folder / "index.html").exists(), f"{folder} holds no site; run make docs first."
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_reads_without_a_network_on_laptop_and_phone(browser, site, width, scheme):
    wrong, asked = [], []
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    page = context.new_page()
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        assert page.locator("img:not([alt]), img[alt='']").count() == 0, path.name
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 1, f"{path.name} is {wide} pixels wider than the screen"
        if path.stem in ("index", "03_buckets", "reference"):
            page.screenshot(path=SHOTS / f"site_{path.stem}_{width}_{scheme}.png")
    context.close()
    assert not wrong
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


def test_the_search_finds_pages(browser, site):
    context = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True)
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    page.locator("input[name=q]").first.fill("set_epoch")
    page.locator("input[name=q]").first.press("Enter")
    page.locator("#search-results li a", has_text=re.compile("loop", re.IGNORECASE)).first.wait_for(timeout=30_000)
    context.close()


def test_the_first_notebook_runs_in_jupyterlab(browser, lab):
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    run_all(page, lab, "00_start_here.ipynb", 3)
    pictures, errors = pictures_and_errors(page)
    page.screenshot(path=SHOTS / "00_start_here.png")
    page.close()
    assert (pictures >= 2, errors) == (True, 0)


def test_the_explorers_slider_search_and_pictures_work_in_jupyterlab(browser, lab):
    page = browser.new_page(viewport={"width": 1366, "height": 900})
    run_all(page, lab, "03_buckets.ipynb", 6)
    pictures, errors = pictures_and_errors(page)
    assert errors == 0
    assert pictures >= 6
    explorer = page.locator(".widget-vbox").first
    explorer.scroll_into_view_if_needed()
    heading = explorer.locator(".widget-html-content b").first
    assert "step 100" in heading.inner_text()
    page.screenshot(path=SHOTS / "03_explorer.png")
    slider = explorer.locator(".noUi-handle").first
    slider.focus()
    slider.press("ArrowLeft")
    heading.get_by_text("step 50").wait_for(timeout=20_000)
    picture = explorer.locator("button[class*=bonlib-]")
    seen = "node => getComputedStyle(node).backgroundImage.startsWith('url(\"data:image/png')"
    page.wait_for_function(f"[...document.querySelectorAll('button[class*=bonlib-]')].every({seen})")
    before = heading.inner_text()
    picture.last.click()
    page.wait_for_function(
        "old => [...document.querySelectorAll('.widget-html-content b')][0].innerText != old", arg=before
    )
    explorer.locator("input[type=text]").first.fill("Ŷ")
    explorer.locator("input[type=text]").first.press("Enter")
    explorer.locator("button", has_text="random anchor").click()
    page.wait_for_timeout(1500)
    page.screenshot(path=SHOTS / "03_explorer_moved.png")
    dial = page.locator("img.widget-image, .widget-image img").first
    dial.scroll_into_view_if_needed()
    shown = dial.get_attribute("src")
    handle = page.locator(".widget-slider .noUi-handle-upper").last
    handle.focus()
    handle.press("ArrowRight")
    page.wait_for_function("old => document.querySelector('img.widget-image').src != old", arg=shown)
    page.screenshot(path=SHOTS / "03_dial.png")
    assert pictures_and_errors(page)[1] == 0
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["02_hashing", "09_your_own_data"])
def test_a_notebook_runs_after_a_restart_of_its_kernel(browser, lab, name):
    page = browser.new_page(viewport={"width": 1366, "height": 900})
    run_all(page, lab, f"{name}.ipynb", 7, restart=True)
    pictures, errors = pictures_and_errors(page)
    page.screenshot(path=SHOTS / f"{name}.png")
    page.close()
    assert (pictures >= 3, errors) == (True, 0)


@pytest.mark.slow
def test_a_stopped_training_says_how_to_go_on_and_does(browser, lab):
    page = browser.new_page(viewport={"width": 1366, "height": 900})
    start_all(page, lab, "04_training.ipynb")
    bar = page.locator(".widget-hbox", has_text=re.compile(r"\b1[0-9][0-9]/400"))
    bar.wait_for(timeout=180_000)
    bar.scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / "04_live.png")
    page.locator(
        ".jp-NotebookPanel-toolbar button[title*=Interrupt], [data-jp-item-name=interrupt] button"
    ).first.click()
    page.get_by_text("is whole: to go on from it").wait_for(timeout=30_000)
    page.get_by_text("is whole: to go on from it").scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / "04_stopped.png")
    run_all(page, lab, "04_training.ipynb", 4)
    page.screenshot(path=SHOTS / "04_gone_on.png")
    pictures, errors = pictures_and_errors(page)
    assert pictures >= 3
    assert errors == 0
    page.close()
