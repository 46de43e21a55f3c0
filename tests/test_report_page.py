"""The page of a comparison in a browser: it opens from a file, sorts, compares, fits a telephone and the dark."""

import re
from contextlib import contextmanager

import pytest

from hranet_arch import report, scores
from tests.conftest import check_dark_and_light, watch_page
from tests.test_report import PUBLISHED, safe_record, write_pictures


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    record = safe_record()
    write_pictures(record, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "read_published", lambda: PUBLISHED)
        report.write_report(record, folder)
    return (folder / "report.html").as_uri()


@pytest.fixture
def open_page(browser, address):
    """Opens the page; when it is closed, nothing may have been complained about or asked of the network."""

    @contextmanager
    def open_with(**context):
        with watch_page(browser, address, **context) as (page, messages, requests):
            page.wait_for_function("document.getElementById('right-image').naturalWidth > 0")
            yield page
        assert messages == []
        assert {url.partition(":")[0] for url in requests} <= {"file", "data"}

    return open_with


def read_column(page, column):
    return page.locator(f"#result-table tbody tr > :nth-child({column})").all_inner_texts()


def test_table_sorts_both_ways_with_the_missing_last(open_page):
    with open_page() as page:
        assert read_column(page, 1) == ["noisy", "Net", "a_b|100% & <i>$x$(script)", "BM3D"]
        head = page.locator("#result-table thead tr:last-child th").nth(4)  # BSD68 σ 25
        assert head.get_attribute("aria-sort") == "none"
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert [text[:5].strip() for text in read_column(page, 5)] == ["29.23", "28.57", "20.18", "—"]
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert [text[:5].strip() for text in read_column(page, 5)] == ["20.18", "28.57", "29.23", "—"]


def test_table_shows_what_is_chosen(open_page):
    with open_page() as page:
        assert page.locator("#result-table .sign").all_inner_texts() == [" ≠"]
        page.get_by_label("SSIM", exact=True).check()
        assert read_column(page, 2) == ["0.9000", "0.8900", "0.8800", "0.8700"]
        page.get_by_label("Δ published").check()
        assert read_column(page, 3) == ["—", "-0.04 ≠", "—", "—"]
        page.locator("#result-controls").get_by_label("σ 25").check()
        assert page.locator("#result-table thead tr:last-child th").count() == 4  # and what it was trained on


def read_cut(page):
    """How many pixels of the left picture are cut off at its right."""
    style = page.locator("#left-image").evaluate("image => getComputedStyle(image).clipPath")
    return float((re.findall(r"[\d.]+", style) * 2)[1])  # one number stands for all sides


def test_divider_follows_keyboard_and_mouse(open_page):
    with open_page() as page:
        width = page.locator("#stage").evaluate("stage => stage.offsetWidth")
        assert width == 4 * 44 and read_cut(page) == width / 2  # the picture fits at the highest zoom
        page.locator("#position").focus()
        page.keyboard.press("End")
        assert read_cut(page) == 0
        page.keyboard.press("Home")
        assert read_cut(page) == width
        box = page.locator("#pan").bounding_box()
        page.mouse.move(box["x"] + 3 * width / 4, box["y"] + 5)
        page.mouse.down()
        page.mouse.move(box["x"] + width / 4, box["y"] + 20)
        page.mouse.up()
        assert read_cut(page) == pytest.approx(3 * width / 4, abs=1)


def test_sources_change_picture_and_psnr(open_page):
    with open_page() as page:
        assert page.locator("#right-psnr").inner_text() == "34.89 dB"
        before = page.locator("#right-image").get_attribute("src")
        page.locator("#right").select_option(label="BM3D")
        assert page.locator("#right-psnr").inner_text() == "34.37 dB"
        assert page.locator("#right-image").get_attribute("src") != before
        page.locator("#level").select_option(label="σ 25")  # the method stays
        assert page.locator("#right-psnr").inner_text() == "31.97 dB"
        page.locator("#left").select_option(label="clean")
        assert page.locator("#left-psnr").inner_text() == "ground truth"
        page.locator("#picture").select_option(index=1)
        assert page.locator("#right-psnr").inner_text() == "27.97 dB"
        assert page.locator("#crops figure").count() == 5


def test_zoom_is_whole_pixels(open_page):
    with open_page() as page:
        for zoom in (1, 2, 4):
            page.locator("#zoom").get_by_label(f"{zoom}×").check()
            assert page.locator("#stage").evaluate("stage => [stage.offsetWidth, stage.offsetHeight]") == [
                zoom * 44,
                zoom * 40,
            ]


def test_each_plot_can_be_shown(open_page):
    with open_page() as page:
        for name in ("latency", "parameters", "MACs"):
            page.locator("#plot-controls").get_by_label(name).check()
            assert name in page.locator("#plot svg").text_content()


def test_a_telephone_scrolls_tables_not_the_page(open_page):
    with open_page(width=360, height=800) as page:
        page.locator("#result-controls").get_by_label("All", exact=True).first.check()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("#result-table").evaluate("host => host.scrollWidth > host.clientWidth")


def test_dark_and_light_have_their_own_colours(open_page):
    check_dark_and_light(open_page)
