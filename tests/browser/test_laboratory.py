"""The laboratory as a group sees it: a sweep started in Prefect's form, watched to its end, compared in MLflow.

Screenshots go to the folder of SFD_SCREENSHOTS, if that is set, for the README.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import WholeLaboratory, whole_project
from playwright.sync_api import Browser, Page, expect
from seaweed import WEED

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(WEED is None, reason="the SeaweedFS binary is not installed"),
]

SWEEP = "from-the-form"
DEFAULT_OFFSETS = 8
OFFSETS = (0.0, 0.15, 0.3)
SWEPT_SECONDS = 900
LINK = re.compile(r"http://\S+viewStateShareKey=comparison\S*")


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeLaboratory]:
    made = WholeLaboratory(whole_project(tmp_path_factory.mktemp("laboratory") / "project", ["dit", "sfd"]))
    try:
        made.run("up")
        yield made
    finally:
        made.run("down", check=False)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("SFD_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_a_sweep_from_the_form_to_the_comparison(laboratory: WholeLaboratory, page: Page) -> None:
    start_sweep(laboratory, page)
    page.goto(f"{laboratory.address('PREFECT')}/runs")
    page.get_by_role("link", name=SWEEP, exact=True).first.click()
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=SWEPT_SECONDS * 1000)
    page.reload()  # Prefect's page asks no more for artifacts once the run has ended, so it may lack the last ones
    page.get_by_role("tab", name="Artifacts").or_(page.get_by_text("Artifacts", exact=True)).first.click()
    expect(page.get_by_text(re.compile(f"{SWEEP}-summary")).first).to_be_visible()
    keep(page, "prefect-sweep")
    laboratory.shell("dvc repro --quiet evaluate@dit && python -m sfd_core.cli track")
    printed = laboratory.shell("python -m sfd_core.cli dashboard")
    assert "baselines: dit" in printed
    found = LINK.search(printed)
    assert found is not None
    see_comparison(page, found[0])


def start_sweep(laboratory: WholeLaboratory, page: Page) -> None:
    """Fill the form of the offset sweep with other values and submit it."""
    page.goto(f"{laboratory.address('PREFECT')}/deployments")
    page.get_by_role("link", name="offset sweep").first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").first.click()
    offsets = page.locator("form .p-draggable-list").first.locator(".p-draggable-list__item")
    expect(offsets).to_have_count(DEFAULT_OFFSETS)
    page.locator("form textarea").first.fill(SWEEP)
    for left in reversed(range(len(OFFSETS), DEFAULT_OFFSETS)):
        offsets.last.get_by_role("button").first.click()
        expect(offsets).to_have_count(left)
    for number, offset in enumerate(OFFSETS):
        offsets.nth(number).locator("input").fill(str(offset))
    keep(page, "prefect-form")
    page.get_by_role("button", name="Submit", exact=True).click()
    page.wait_for_url(re.compile("tab=Runs"))


def see_comparison(page: Page, link: str) -> None:
    """Open the prepared page: DiT, one run for each offset, and the charts of every section."""
    page.goto(link)
    expect(page.get_by_text("viewing a shared view").first).to_be_visible()
    close = page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    close.click()
    expect(close).to_be_hidden()
    for name in ("dit", *(f"sfd-delta_t-{str(offset).removesuffix('.0').replace('.', 'p')}-seed-0" for offset in OFFSETS)):
        expect(page.get_by_role("link", name=name, exact=True).first).to_be_visible()
    for section in ("Convergence", "Sweeps", "Training"):
        heading = page.get_by_text(section, exact=True).first
        heading.scroll_into_view_if_needed()
        expect(heading).to_be_visible()
    page.get_by_text("Convergence", exact=True).first.scroll_into_view_if_needed()
    for offset in ("0", "0p15", "0p3"):
        legend = page.get_by_text(f"sfd-delta_t-{offset}-seed-0 (evaluate/fd_efficientnet_lite0)", exact=True)
        expect(legend.first).to_be_attached()
    keep(page, "mlflow-comparison")
