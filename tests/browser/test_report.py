"""The report in a real browser, at the width of a phone and of a desk. Screenshots go to the test's temporary folder."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from synthetic_outputs import FINAL, FRAMES, IMAGENET_CLASSES, imagenet_like, write_outputs, write_studies

from sfd_core.experiment.params import load_params
from sfd_core.stages.report import report

pytestmark = pytest.mark.browser

PHONE, DESK = 390, 1400


@dataclass
class Visit:
    """An opened page with everything it complained about or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    root = tmp_path_factory.mktemp("project")
    return report(params, write_outputs(root / "outputs", params), write_studies(root / "results", params), root / "report")


@pytest.fixture(params=[(PHONE, "light"), (DESK, "dark")], ids=lambda p: f"{p[0]}-{p[1]}")
def visit(request: pytest.FixtureRequest, browser: Browser, report_page: Path) -> Iterator[Visit]:
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened = Visit(page)
    page.on("console", lambda message: opened.complaints.append(message.text))
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("request", lambda asked: opened.requests.append(asked.url))
    page.goto(report_page.as_uri())
    page.wait_for_selector("#scrubber[data-ready]")
    yield opened
    page.close()


def pixels(page: Page, selector: str) -> str:
    return str(page.eval_on_selector(selector, "canvas => canvas.toDataURL()"))


def test_page_opens_quietly_and_asks_for_nothing_else(visit: Visit, report_page: Path, tmp_path: Path) -> None:
    visit.page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [report_page.as_uri()]
    assert (tmp_path / "report.png").stat().st_size > 100_000


def test_nothing_is_wider_than_the_window(visit: Visit) -> None:
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_scrubber_moves_picture_phase_and_times_by_keyboard(visit: Visit) -> None:
    page = visit.page
    page.focus("#scrub")
    page.keyboard.press("Home")
    seen = [(page.inner_text("#phase-now"), pixels(page, "#pairs .texture"), pixels(page, "#pairs .semantic"))]
    for _ in range(FRAMES - 1):
        page.keyboard.press("ArrowRight")
        seen.append((page.inner_text("#phase-now"), pixels(page, "#pairs .texture"), pixels(page, "#pairs .semantic")))
    labels, textures, semantics = zip(*seen, strict=True)
    assert [label.split(":")[0] for label in dict.fromkeys(labels)] == [
        "semantic initialisation",
        "asynchronous generation",
        "texture completion",
    ]
    assert textures[0] != textures[-1]
    assert len(set(semantics)) > FRAMES // 2
    assert page.inner_text("#time-now") == "u = 1.30"
    assert visit.complaints == []


def test_scrubber_shows_a_variant_without_semantics(visit: Visit) -> None:
    visit.page.check("input[name=run][value=dit]", force=True)
    visit.page.wait_for_selector("#scrubber[data-ready=dit]")
    assert visit.page.locator("#pairs .semantic").count() == 0
    assert visit.page.inner_text("#phase-now").startswith("texture generation")
    assert not visit.page.is_visible(".lane[data-part=semantic]")


def test_play_runs_to_the_end(visit: Visit) -> None:
    visit.page.focus("#scrub")
    visit.page.keyboard.press("Home")
    visit.page.click("#play")
    expect(visit.page.locator("#time-now")).to_have_text("u = 1.30", timeout=30_000)


def test_snapshot_slider_changes_the_samples(visit: Visit) -> None:
    page, cell = visit.page, ".cell[data-variant=sfd]"
    last = page.eval_on_selector(cell, "cell => cell.style.backgroundImage")
    page.focus("#snapshot")
    page.keyboard.press("Home")
    assert page.eval_on_selector(cell, "cell => cell.style.backgroundImage") != last
    assert page.inner_text("#snapshot-now") == "19,200 images seen"


def test_chart_switches_axis_measure_and_variants(visit: Visit) -> None:
    page = visit.page
    chart = page.locator("#convergence-chart")
    assert "training images seen (log)" in chart.inner_html()
    page.check("input[name=axis][value=seconds]", force=True)
    page.check("input[name=xscale][value=linear]", force=True)
    assert "training wall time<" in chart.inner_html()
    curves = chart.locator("svg > path:not(.break)").count()
    page.evaluate("DATA.curves.sfd.seconds.fill(null)")  # as where no training curve says how long it took
    page.check("input[name=xscale][value=log]", force=True)
    page.check("input[name=xscale][value=linear]", force=True)
    assert chart.locator("svg > path:not(.break)").count() < curves
    curves = chart.locator("svg > path:not(.break)").count()
    page.click("#convergence-legend button >> nth=0")
    assert chart.locator("svg > path:not(.break)").count() < curves
    page.check("input[name=measure][value=precision]", force=True)
    page.check("input[name=evaluator][value=efficientnet_lite0]", force=True)
    page.check("input[name=lines][value=off]", force=True)
    assert chart.locator("line.reference").count() == 0
    page.focus("#convergence-chart")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#convergence-chart .tip")
    assert "Linear" not in chart.inner_text()
    points = chart.locator("svg path:not([fill=none])").count()
    page.evaluate("Object.values(DATA.curves)[1].numbers.precision_efficientnet_lite0[0] = 0")
    page.check("input[name=xscale][value=log]", force=True)
    assert "Linear, as a value is not above 0." in chart.inner_text()
    assert chart.locator("svg path:not([fill=none])").count() == points
    assert visit.complaints == []


def test_longer_training_has_a_chart_of_every_variant_by_evaluator(visit: Visit) -> None:
    charts = visit.page.locator("[data-long]")
    assert charts.count() == 2
    captions = visit.page.locator("#long figcaption").all_text_contents()
    assert all(name in caption for caption in captions for name in FINAL)


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_published_curves_stand_beside_fid_on_imagenet_and_can_be_hidden(width: int, browser: Browser, tmp_path: Path) -> None:
    params = imagenet_like(load_params(Path(__file__).parents[2] / "params.yaml"))
    texture_leads = params.variants["sfd"].model_copy(update={"delta_t": -0.5})
    params = params.model_copy(update={"variants": params.variants | {"sfd": texture_leads}})
    outputs = write_outputs(tmp_path / "outputs", params, IMAGENET_CLASSES)
    written = report(params, outputs, write_studies(tmp_path / "results", params), tmp_path / "report")
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(written.as_uri())
    page.wait_for_selector("#scrubber[data-ready]")
    curves = page.locator("#convergence-chart svg > path[fill=none]:not(.break)")
    shown = curves.count()
    assert page.locator("#convergence-legend button", has_text="published: ").count() == shown - len(params.active)
    page.check("input[name=published][value=off]", force=True)
    assert curves.count() == len(params.active)
    page.check("input[name=published][value=on]", force=True)
    page.check("input[name=axis][value=flops]", force=True)
    assert curves.count() == len(params.active), "papers do not say FLOPs"
    offsets = page.locator("#published-offsets svg > path[fill=none]:not(.break)")
    assert offsets.count() >= 1
    starts = [float(offsets.nth(index).get_attribute("d")[1:].split()[0]) for index in range(offsets.count())]
    assert min(starts) >= 58, "points of negative offsets lie inside the axes"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []
    page.close()


def test_theme_follows_the_system_and_the_button(visit: Visit) -> None:
    page = visit.page
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_every_control_has_a_name(visit: Visit) -> None:
    unnamed = visit.page.evaluate(
        """[...document.querySelectorAll('button, input, canvas, img, [role=img]')].filter((e) =>
        !(e.getAttribute('aria-label') || e.getAttribute('alt') || e.textContent.trim() || (e.labels && e.labels.length)
        || e.querySelector('title'))).map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert unnamed == []
