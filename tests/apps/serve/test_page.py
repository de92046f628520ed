"""The page in a real browser: headless Chromium on desktop and phone, mouse and keyboard, search to zero-shot."""

import re
import shutil
from collections.abc import Iterator
from typing import Literal

import pytest

from tests.apps.colours import ODD_CAPTION
from tests.apps.serve.asking import encoded

pytest.importorskip("playwright.sync_api", reason="the browser tests need `pip install playwright`")
from playwright.sync_api import Browser, FilePayload, Page, ViewportSize, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = {"desktop": ViewportSize(width=1280, height=900), "phone": ViewportSize(width=390, height=844)}
RED = FilePayload(name="red.png", mimeType="image/png", buffer=encoded((250, 10, 10)))
BROKEN = FilePayload(name="broken.png", mimeType="image/png", buffer=b"no picture")

# Controls that a finger would miss.
SMALL = """[...document.querySelectorAll('button, select, input, .button')]
    .filter((each) => each.offsetParent && !each.classList.contains('unseen'))
    .filter((each) => each.getBoundingClientRect().height < 22)
    .map((each) => each.outerHTML)"""
# Contrast of words with what they stand on, as WCAG 2.1 computes it.
CONTRAST = """() => {
    const linear = (part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const light = (colour) => {
        const [red, green, blue] = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => linear(part / 255));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ground = (each) => {
        for (; each; each = each.parentElement) {
            const colour = getComputedStyle(each).backgroundColor;
            if (!/, 0\\)$/.test(colour)) return light(colour);
        }
    };
    const words = document.querySelectorAll('.status, .note, .first, nav button, footer p, .label');
    return [...words].filter((each) => each.offsetParent && each.textContent.trim()).map((each) => {
        const [more, less] = [light(getComputedStyle(each).color), ground(each)].sort((a, b) => b - a);
        return (more + 0.05) / (less + 0.05);
    });
}"""

WAIT = 90_000  # milliseconds: a busy machine may take long
expect.set_options(timeout=WAIT)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=WAIT)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """Return the page, opened; afterwards nothing may have been logged, and nothing asked of another host."""
    page, wrong = browser.new_context(viewport=SIZES["desktop"]).new_page(), []
    page.set_default_timeout(WAIT)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "422" not in message.text else None)
    page.on(
        "request", lambda request: wrong.append(request.url) if not request.url.startswith((address, "blob:")) else None
    )
    page.goto(address)
    page.wait_for_selector(".card")
    yield page
    page.context.close()
    assert not wrong


def search(page: Page, text: str) -> None:
    page.fill("#query", text)
    page.press("#query", "Enter")
    expect(page.locator("#search-status")).to_contain_text(f"“{text}”")


def titles(page: Page, within: str = "#search-results") -> list[str]:
    return [text.split(" · ")[0] for text in page.locator(f"{within} .caption").all_inner_texts()]


def test_before_anything_is_asked(page: Page) -> None:
    expect(page.locator("#search-status")).to_have_text("5 images; some of them:")
    assert len(titles(page)) == 5
    page.click("#hints button >> nth=1")
    expect(page.locator("#search-status")).to_contain_text("5 images for")


def test_a_sentence_finds_pictures(page: Page) -> None:
    search(page, "a blue thing")
    assert titles(page)[0] == "something blue"
    expect(page.locator(".card").first).to_have_attribute("aria-label", re.compile("1: something blue, score 0.99"))
    assert page.locator("#search-status").get_attribute("aria-live") == "polite"
    assert page.title() == "a blue thing · Search"
    for place in range(5):
        expect(page.locator(".card img").nth(place)).to_have_js_property("naturalWidth", 9)
    page.reload()
    expect(page.locator("#search-status")).to_contain_text("“a blue thing”")


def test_what_data_and_people_say_stays_text(page: Page) -> None:
    search(page, "red green blue")
    assert page.locator(".card .caption").first.inner_text() == ODD_CAPTION
    page.locator(".card").first.click()
    expect(page.locator("#viewer-title")).to_have_text(ODD_CAPTION)
    expect(page.locator("#viewer-picture")).to_have_js_property("naturalWidth", 9)
    page.keyboard.press("Escape")
    search(page, '<img src=x onerror="document.title=2">')
    assert page.locator("main img:not(.card img):not(.strip img)").count() == 0
    assert page.title().startswith("<img")


def test_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("a red thing")
    page.keyboard.press("Enter")
    expect(page.locator("#search-status")).to_contain_text("a red thing")
    page.keyboard.press("ArrowDown")
    focused = "document.activeElement.getAttribute('aria-label') || document.activeElement.id"
    assert page.evaluate(focused).startswith("1: something red")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    second = page.locator("#viewer-title").inner_text()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer-title")).to_have_text("something red")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer-title")).to_have_text("something red")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-title")).to_have_text(second)
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    assert page.evaluate(focused).startswith("2: ")
    page.keyboard.press("End")
    assert page.evaluate(focused).startswith("5: ")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == "query"


def test_a_chosen_picture_finds_pictures_and_captions(page: Page) -> None:
    page.set_input_files("#search-file", RED)
    expect(page.locator("#search-status")).to_contain_text("this picture")
    assert titles(page)[0] == "something red"
    assert page.locator(".captions li").first.inner_text().split() == ["0.998", "something", "red"]
    assert page.locator("#search-chosen span").inner_text() == "red.png"
    page.click("#search-chosen button")
    expect(page.locator("#search-status")).to_have_text("5 images; some of them:")


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_dropped_or_pasted_picture(page: Page, how: str) -> None:
    page.evaluate(
        """([how, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "given.png", { type: "image/png" }));
            const kept = { cancelable: true, bubbles: true };
            const event = how === "drop" ? new DragEvent("drop", { ...kept, dataTransfer: data })
                : new ClipboardEvent("paste", { ...kept, clipboardData: data });
            document.body.dispatchEvent(event);
        }""",
        [how, list(RED["buffer"])],
    )
    expect(page.locator("#search-status")).to_contain_text("this picture")
    assert titles(page)[0] == "something red"


def test_a_broken_picture_is_one_sentence(page: Page) -> None:
    page.set_input_files("#search-file", BROKEN)
    problem = page.locator("#search-problem")
    expect(problem).to_have_text("image: expected a picture, found not an image of a known format.")
    assert problem.get_attribute("role") == "alert"
    search(page, "red")
    expect(problem).to_be_hidden()


def test_a_picture_that_is_too_large_is_not_sent(page: Page) -> None:
    page.set_input_files("#search-file", FilePayload(name="x", mimeType="image/png", buffer=b"x" * 10_000_001))
    expect(page.locator("#search-problem")).to_contain_text("expected an image of at most 10 MB, found 10.0 MB")
    page.set_input_files("#search-file", FilePayload(name="a.txt", mimeType="text/plain", buffer=b"x"))
    expect(page.locator("#search-problem")).to_contain_text("expected an image, found text/plain")


def test_zero_shot(page: Page) -> None:
    page.click("#tab-classes")
    page.click("#classify button.first")
    expect(page.locator("#classes-problem")).to_have_text("expected a picture, found none.")
    page.set_input_files("#classes-file", RED)
    expect(page.locator("#classes-problem")).to_have_text("expected class names, one a line, found none.")
    page.fill("#names", "green\nred\n\n red \nblue")
    page.fill("#template", "nothing to fill")
    page.click("#classify button.first")
    expect(page.locator("#classes-problem")).to_contain_text("a template with {c} or {} where the class name goes")
    page.fill("#template", "{c} it is")
    page.press("#template", "Enter")
    expect(page.locator("#classes-status")).to_contain_text("Most probable: red (")
    names, shares = (page.locator(f".bars .{part}").all_inner_texts() for part in ("name", "share"))
    assert names[0] == "red"
    assert sorted(names) == ["blue", "green", "red"]
    assert sum(float(share.removesuffix(" %")) for share in shares) == pytest.approx(100, abs=0.2)
    widths = page.eval_on_selector_all(".bars .bar", "bars => bars.map((bar) => bar.getBoundingClientRect().width)")
    assert widths == sorted(widths, reverse=True)
    page.click("#strip button >> nth=2")
    expect(page.locator("#classes-status")).to_contain_text("Most probable: blue (")


def test_from_a_result_on(page: Page) -> None:
    search(page, "green")
    page.locator(".card").first.click()
    page.click("#viewer-similar")
    expect(page.locator("#search-status")).to_contain_text("this picture, best score 1.000")
    page.locator(".captions button").first.click()
    expect(page.locator("#viewer-title")).to_have_text("something green")
    page.click("#viewer-classify")
    expect(page.locator("#panel-classes")).to_be_visible()
    assert page.locator("#classes-chosen span").inner_text() == "something green"


def test_two_runs_side_by_side(page: Page) -> None:
    search(page, "a violet red blue thing")
    page.select_option("#beside", "other")
    expect(page.locator("#search-results h2")).to_have_count(2)
    assert page.locator("#search-results h2").all_inner_texts() == ["run", "other"]
    columns = page.locator("#search-results > section")
    left, right = (columns.nth(side).locator(".caption").all_inner_texts() for side in (0, 1))
    assert left == right
    edge = "section => [section.getBoundingClientRect().left, section.getBoundingClientRect().right]"
    (_, end), (start, _) = (columns.nth(side).evaluate(edge) for side in (0, 1))
    assert end < start
    page.click("#tab-classes")
    page.fill("#names", "red\nblue")
    page.set_input_files("#classes-file", RED)
    expect(page.locator("#classes-results .bars")).to_have_count(2)
    page.select_option("#run", "other")
    assert page.input_value("#beside") == ""
    expect(page.locator("#classes-results .bars")).to_have_count(1)


def test_tabs_by_keyboard(page: Page) -> None:
    page.focus("#tab-search")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tab-classes").get_attribute("aria-selected") == "true"
    expect(page.locator("#panel-classes")).to_be_visible()
    expect(page.locator("#panel-search")).to_be_hidden()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_and_words_are_readable(
    browser: Browser, address: str, size: str, scheme: Literal["light", "dark"]
) -> None:
    page = browser.new_context(viewport=SIZES[size], color_scheme=scheme).new_page()
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.wait_for_selector(".card")
    page.select_option("#beside", "other")
    search(page, "red " * 40 + "blue")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(SMALL) == []
    page.click("#tab-classes")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(SMALL) == []
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 5
    assert min(ratios) >= 4.5
    page.context.close()


def test_every_control_has_a_name(page: Page) -> None:
    unnamed = """[...document.querySelectorAll('input, select, textarea, button, [role=tab]')]
        .filter((each) => !(each.labels?.length || each.textContent.trim() || each.getAttribute('aria-label')))
        .map((each) => each.outerHTML)"""
    assert page.evaluate(unnamed) == []
    assert page.evaluate("[...document.images].every((image) => image.hasAttribute('alt'))")
