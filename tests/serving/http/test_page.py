"""The web page, in a real headless browser: clicked through by hand, keyboard and thumb."""

import json
import os
import shutil
from collections.abc import Generator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fake_room import FakeRoom
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sites import Host, Site

ROOT = Path(__file__).parents[3]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

pytestmark = pytest.mark.slow


def browser_at() -> str | None:
    """A Chromium: the one that LSSGEN_BROWSER names, one on the path, or the one that `make test-all` fetched."""
    fetched = ROOT / ".venv" / "browser" / "chromium"
    found = os.environ.get("LSSGEN_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    return found or (str(fetched) if fetched.exists() else None)


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    if (path := browser_at()) is None:
        pytest.skip("no Chromium here; LSSGEN_BROWSER names one")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Generator[Page]:
    context = browser.new_context(accept_downloads=True)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda sent: wrong.append(sent.url) if not local(sent.url) else None)
    opened.set_default_timeout(20_000)
    yield opened
    context.close()
    assert wrong == [], "errors, or addresses outside"


def local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def test_a_prompt_becomes_a_picture_by_way_of_a_preview(page: Page, painted: Site) -> None:
    page.goto(painted.url)
    expect(page.locator("#model option")).to_have_text(["toy"])
    seen = page.evaluate_handle(
        """() => {
            const seen = [];
            const heard = (records) => records.forEach(({ addedNodes }) =>
                addedNodes.forEach((node) => seen.push(node.textContent)));
            new MutationObserver(heard).observe(document.getElementById("caption"), { childList: true });
            return seen;
        }"""
    )
    page.fill("#prompt", "a fox")
    page.fill("#steps", "40")
    page.fill("#seed", "7")
    page.click("#paint")
    expect(page.locator("#status")).to_have_text("Done.")
    expect(page.locator("#caption")).to_have_text("64x64 px, seed 7")
    expect(page.locator("#picture")).not_to_have_class("preview")
    shown = seen.json_value()
    assert shown[0] == "A preview, 32x32 px", "the small stage came first"
    assert shown[-1] == "64x64 px, seed 7"


def test_the_queue_position_is_told_and_a_request_can_be_cancelled(page: Page, site: Site, room: FakeRoom) -> None:
    room.hold.clear()
    page.goto(site.url)
    page.fill("#prompt", "a fox")
    page.click("#paint")
    expect(page.locator("#status")).to_have_text("Waiting, 3 ahead, about 2 s ...")
    expect(page.locator("#paint")).to_be_disabled()
    page.click("#cancel")
    expect(page.locator("#error")).to_contain_text("taken back")
    expect(page.locator("#paint")).to_be_enabled()
    assert room.cancelled == 1


def test_the_keyboard_is_enough(page: Page, site: Site, room: FakeRoom) -> None:
    page.goto(site.url)
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("a fox by keyboard")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_have_text("Done.")
    expect(page.locator("#paint")).to_be_enabled()
    room.hold.clear()
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("Waiting")
    page.keyboard.press("Escape")
    expect(page.locator("#error")).to_contain_text("taken back")
    page.focus("#prompt")
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert order == ["model", "width", "height", "steps", "guidance", "seed", "SUMMARY", "paint"]


def test_history_stays_in_the_browser_and_gives_pictures_with_their_settings(page: Page, site: Site) -> None:
    page.goto(site.url)
    for seed in ("1", "2"):
        page.fill("#prompt", f"fox {seed}")
        page.fill("#seed", seed)
        page.click("#paint")
        expect(page.locator("#history li")).to_have_count(int(seed))
    page.reload()
    expect(page.locator("#history .prompt")).to_have_text(["fox 2", "fox 1"])
    with page.expect_download() as download:
        page.locator("#history li").first.get_by_text("Picture").click()
    image = Image.open(BytesIO(Path(download.value.path()).read_bytes()))
    parameters = json.loads(image.text["parameters"])  # type: ignore[attr-defined]
    assert (download.value.suggested_filename, parameters["seed"]) == ("lssgen-2.png", 2)
    with page.expect_download() as download:
        page.locator("#history li").first.get_by_text("Settings").click()
    assert json.loads(Path(download.value.path()).read_bytes())["prompt"] == "fox 2"
    page.locator("#history li").last.get_by_text("Again").click()
    expect(page.locator("#prompt")).to_have_value("fox 1")
    page.locator("#history li").first.get_by_text("Remove").click()
    expect(page.locator("#history li")).to_have_count(1)
    page.click("#clear")
    expect(page.locator("#history li")).to_have_count(0)


def test_a_refusal_is_told_in_the_servers_words(page: Page, site: Site) -> None:
    page.goto(site.url)
    page.fill("#prompt", "a fox")
    page.fill("#width", "65")
    page.fill("#height", "64")
    page.evaluate("document.getElementById('ask').noValidate = true")
    page.click("#paint")
    expect(page.locator("#error")).to_contain_text("the nearest is 64x64")


def test_one_side_goes_with_the_models_other_and_notes_are_shown(page: Page, site: Site, room: FakeRoom) -> None:
    page.goto(site.url)
    page.fill("#prompt", "a fox")
    page.fill("#width", "128")
    page.click("#paint")
    expect(page.locator("#status")).to_have_text("Done.")
    expect(page.locator("#notes")).to_have_text("a note")
    assert (room.asked[0].options["width"], room.asked[0].options["height"]) == (128, 64)


def test_a_key_is_asked_for_and_kept_for_the_session(page: Page, host: Host, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice {'k' * 20}\n")
    file.chmod(0o600)
    with host(settings={"api_keys": file}) as site:
        page.goto(site.url)
        expect(page.locator("#error")).to_contain_text("API key")
        page.click("summary")
        page.fill("#key", "k" * 20)
        page.locator("#key").press("Tab")
        expect(page.locator("#model option")).to_have_text(["toy"])
        page.reload()
        page.fill("#prompt", "a fox")
        page.click("#paint")
        expect(page.locator("#status")).to_have_text("Done.")


def test_it_fits_a_phone(browser: Browser, site: Site) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(site.url)
    page.fill("#prompt", "a fox")
    page.tap("#paint")
    expect(page.locator("#status")).to_have_text("Done.")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for box in page.locator("#paint, #cancel").all():
        size: Any = box.bounding_box()
        assert size["height"] >= 44, "as large as a thumb"
    context.close()


def test_a_prompt_that_is_html_is_text(page: Page, site: Site) -> None:
    page.goto(site.url)
    page.fill("#prompt", "<img src=x onerror=alert(1)>")
    page.click("#paint")
    expect(page.locator("#history .prompt")).to_have_text("<img src=x onerror=alert(1)>")
