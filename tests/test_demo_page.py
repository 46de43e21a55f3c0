"""The page for trying a network: what comes in, what comes out, who is turned away; and the page in a browser."""

import asyncio
import base64
import http.client
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from contextlib import ExitStack, aclosing, closing, contextmanager
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
import torch

from hranet_arch import HRANet
from hranet_arch.baselines import FFDNet
from hranet_arch.demo_cleaner import Cleaner, Limits
from hranet_arch.errors import InputError
from hranet_arch.restore import Denoiser
from tests.conftest import REPOSITORY, check_dark_and_light, make_pictures, run_cli, watch_page

pytest.importorskip("starlette", reason="Starlette is not installed (extra [demo])")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra [demo])")
from hranet_arch import demo_page  # noqa: E402

DEMO = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with Ctrl-C ignored
from hranet_arch.cli import main
main()
"""
LIMITS = Limits(upload=300_000, pixels=40_000)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    for name, network in (("plain", HRANet(num_feat=4)), ("told", FFDNet(num_feat=4, num_conv=2))):
        torch.save({"params": network.state_dict()}, folder / f"{name}.pth")
    return [str(folder / "plain.pth"), str(folder / "told.pth")]


@pytest.fixture(scope="module")
def cleaner(models):
    return Cleaner(models, "cpu", LIMITS)


@pytest.fixture
def client(cleaner):
    testclient = pytest.importorskip("starlette.testclient", reason="httpx is not installed")
    client = testclient.TestClient(demo_page.make_app(cleaner), base_url="http://127.0.0.1:7860")
    client.headers["x-demo-token"] = read_token(client.get("/").text)
    return client


def read_token(page):
    return json.loads(re.search(r'json" nonce.*?>(.*?)</script>', page)[1])["token"]


def encode(pixels, suffix=".png"):
    return cv2.imencode(suffix, pixels)[1].tobytes()


def draw(height=30, width=41, channels=1, dtype=np.uint8, seed=0):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def read_answer(content):
    """The events and the three files of an answer."""
    events = []
    while content:
        line, _, content = content.partition(b"\n")
        events.append(json.loads(line))
        if "result" in events[-1]:
            sizes = events[-1]["result"]["sizes"]
            assert sum(sizes) == len(content)
            return events, [content[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(3)]
    return events, []


def decode(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix, dtype", [(".png", np.uint8), (".png", np.uint16), (".tiff", np.uint16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_result_is_the_denoisers_in_the_depth_it_came(client, models, suffix, dtype, channels):
    pixels = draw(channels=channels, dtype=dtype)
    answer = client.post("/clean?model=0&sigma=auto", content=encode(pixels, suffix))
    events, (before, after, result) = read_answer(answer.content)
    expected = Denoiser(models[0], device="cpu")(np.ascontiguousarray(pixels if channels == 1 else pixels[..., ::-1]))
    expected = expected if channels == 1 else expected[..., ::-1]
    assert np.array_equal(decode(result), expected) and decode(result).dtype == dtype
    white = np.iinfo(dtype).max
    assert np.abs(decode(before) - pixels * (255 / white)).max() <= 1 and decode(before).dtype == np.uint8
    assert np.abs(decode(after) - expected * (255 / white)).max() <= 1
    assert events[0] == {"waiting": 0} and {"progress": 1.0} in events
    facts = events[-1]["result"]["facts"]
    assert facts[0].startswith("41 × 30, " + ("grey" if channels == 1 else "colour"))
    assert facts[2] == ("plain" if channels == 1 else "plain, channel by channel (a grey network)")


def test_noise_level_is_told_or_estimated(client, models):
    pixels = draw(60, 50)
    told, estimated = (
        decode(read_answer(client.post(f"/clean?model=1&sigma={s}", content=encode(pixels)).content)[1][2])
        for s in ("40", "auto")
    )
    denoiser = Denoiser(models[1], device="cpu")
    assert np.array_equal(told, denoiser(pixels, sigma=40.0))
    assert np.array_equal(estimated, denoiser(pixels, sigma="auto"))
    events, _ = read_answer(client.post("/clean?model=1&sigma=auto", content=encode(draw(5, 5))).content)
    assert events[-1] == {"error": "The picture is too small for an estimate of its noise: set the noise level."}


def test_weaker_results_lie_between(client):
    before, after = (draw(300, 20, 3, np.uint16, seed) for seed in (0, 1))  # more rows than are blended at a time
    files = encode(before), encode(after)
    for strength in (0, 0.25, 1):
        query = f"/blend?strength={strength}&split={len(files[0])}"
        blended = decode(client.post(query, content=b"".join(files)).content)
        expected = np.round(before * (1 - strength) + after * strength)
        assert np.array_equal(blended, expected) and blended.dtype == np.uint16
    answer = client.post(f"/blend?strength=1&split={len(files[0])}", content=files[0] + encode(draw()))
    assert answer.status_code == 422 and answer.text == "These two pictures do not belong together."


def test_nothing_is_left_in_the_temporary_folder(client, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for content in (encode(draw()), b"no picture"):
        client.post("/clean?model=0&sigma=auto", content=content)
    assert list(tmp_path.iterdir()) == []


# --- what may come in -------------------------------------------------------------------------------------------------


def make_bomb(width, height):
    """The start of a PNG that says it is large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the file is empty"),
        (b"<html>", "not a picture that can be used: PNG, JPEG"),
        (encode(draw())[:200], "the file is cut off"),
        (encode(draw())[:10], "the file is cut off or damaged"),
        (encode(draw(), ".jpg")[:3], "the file is cut off or damaged"),
        (encode(draw(201, 200)), "200 x 201 pixels; 40,000 are the most here"),
        (make_bomb(30_000, 1_000), "30,000 x 1,000 pixels; 40,000"),
        (make_bomb(60_000, 60_000), "60,000 x 60,000 pixels, 10,800,000,000 bytes once decoded: too large"),
    ],
)
def test_bad_files_are_explained(client, content, message):
    events, _ = read_answer(client.post("/clean?model=0&sigma=auto", content=content).content)
    assert message in events[-1]["error"]
    assert "/" not in events[-1]["error"].replace("16,384 x 16,384", "")  # no path of this machine


@pytest.mark.parametrize("is_length_known", [True, False])
def test_large_files_are_refused(client, is_length_known):
    chunks = [bytes(100_000)] * 4
    answer = client.post("/clean?model=0&sigma=auto", content=b"".join(chunks) if is_length_known else iter(chunks))
    assert answer.status_code == 413 and "too large" in answer.text


@pytest.mark.parametrize(
    "query", ["model=2&sigma=auto", "model=-1&sigma=auto", "model=0&sigma=256", "model=0", "model=x"]
)
def test_other_settings_are_refused(client, query):
    assert client.post(f"/clean?{query}", content=encode(draw())).status_code == 422


# --- who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host, status",
    [("localhost:7860", 200), ("127.0.0.1", 200), ("[::1]:7860", 200), ("192.168.0.7:7860", 200),
     ("evil.example:7860", 421), ("localhost.evil.example", 421), ("", 421), ("[", 421)],
)  # fmt: skip
def test_names_that_are_not_ours_are_turned_away(client, host, status):
    """Under DNS rebinding the browser asks this machine by a foreign name."""
    assert client.get("/", headers={"host": host}).status_code == status


def test_other_pages_are_turned_away(client):
    send = {"url": "/clean?model=0&sigma=auto", "content": encode(draw())}
    assert client.post(**send, headers={"origin": "http://127.0.0.1:7860"}).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:8000"):
        assert client.post(**send, headers={"origin": origin}).status_code == 403
    for token in ("", "wrong"):
        assert client.post(**send, headers={"x-demo-token": token}).status_code == 403
    assert client.get("/clean").status_code == 405


@pytest.mark.parametrize("headers", [{"x-demo-token": "\u00e9".encode("latin-1")}, {"origin": b"http://["}])
def test_headers_that_mean_nothing_are_turned_away(client, headers):
    assert client.post("/clean?model=0&sigma=auto", content=encode(draw()), headers=headers).status_code == 403


def test_page_asks_nothing_of_others(client):
    answer = client.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)|url\(|https?://", answer.text)


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_pictures_wait_for_each_other():
    """Two jobs: the second is told that it waits, and starts when the first has ended."""
    order, release = [], threading.Event()

    def work(name):
        def do(report):
            order.append(f"{name} begins")
            if name == "first":
                assert release.wait(10)
            order.append(f"{name} ends")
            return [name.encode()]

        return do

    async def run():
        desk = demo_page._Desk()

        async def collect(name):
            return [chunk async for chunk in desk.run(work(name))]

        first = asyncio.create_task(collect("first"))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(collect("second"))
        await asyncio.sleep(0.05)
        release.set()
        return await first, await second

    first, second = asyncio.run(run())
    assert order == ["first begins", "first ends", "second begins", "second ends"]
    assert first == [b'{"waiting": 0}\n', b"first"]
    assert second == [b'{"waiting": 1}\n', b'{"waiting": 0}\n', b"second"]


def test_closing_the_page_stops_the_work():
    reports = []

    def work(report):
        for number in range(100):
            report({"progress": number / 100})
            reports.append(number)
            time.sleep(0.01)
        return []

    async def run():
        desk = demo_page._Desk()
        async with aclosing(desk.run(work)) as lines:
            await anext(lines)
            await anext(lines)
        while desk._jobs:  # until the work has ended
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert 0 < len(reports) < 100


@pytest.mark.parametrize("path, query", [("/clean", b"model=0&sigma=auto"), ("/blend", b"strength=1&split=0")])
def test_an_upload_may_be_broken_off(client, path, query):
    """Starlette calls it an error, of which uvicorn would print a traceback."""
    messages = iter([{"type": "http.request", "body": b"part", "more_body": True}, {"type": "http.disconnect"}])
    headers = {**client.headers, "host": "localhost", "content-length": "1000"}
    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": query, "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    sent = []

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    asyncio.run(client.app(scope, receive, send))
    assert sent[0]["status"] == 400


def test_a_full_queue_is_said(client, monkeypatch):
    monkeypatch.setattr(demo_page._Desk, "is_full", True)
    answer = client.post("/clean?model=0&sigma=auto", content=encode(draw()))
    assert answer.status_code == 503 and "waiting" in answer.text


def test_pictures_that_are_being_sent_count():
    desk = demo_page._Desk()
    with ExitStack() as stack:
        for _ in range(demo_page.MOST_WAITING + 1):
            assert not desk.is_full
            stack.enter_context(desk.arrive())
        assert desk.is_full
    assert not desk.is_full


def test_a_fault_is_told_and_the_next_picture_is_cleaned(client, cleaner, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cleaner, "clean", lambda *args: 1 / 0)
        events, _ = read_answer(client.post("/clean?model=0&sigma=auto", content=encode(draw())).content)
        assert events[-1] == {"error": "This picture could not be cleaned (ZeroDivisionError: division by zero)."}
    assert read_answer(client.post("/clean?model=0&sigma=auto", content=encode(draw())).content)[1]


# --- the command ------------------------------------------------------------------------------------------------------


def run_command(*arguments):
    return run_cli("demo", *arguments)


def test_command_without_weights_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr("hranet_arch.networks.list_released", lambda task: {})
    assert run_command() == 2
    assert "Give the weights yourself: --model FILE" in capsys.readouterr().err


def test_command_warns_where_others_can_ask(models, capsys, monkeypatch):
    monkeypatch.setattr(demo_page, "serve", lambda app, listening: None)
    assert run_command("--model", models[0], "--port", "0") == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ .*\n", capsys.readouterr().out)
    assert run_command("--model", models[0], "--port", "0", "--host", "0.0.0.0") == 0
    assert capsys.readouterr().out.startswith("WARNING: on 0.0.0.0 everyone")
    assert run_command("--model", models[0], "--port", "0", "--host", "LOCALHOST") == 0
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_at_once_and_leaves_nothing(number, models, tmp_path, hangup_heard):
    """While a picture is cleaned that takes long: its page is told, and it does not stay on the disk."""
    command = [sys.executable, "-c", DEMO, "demo", "--model", models[0], "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, env=environment, **pipes))
        address = urlsplit(process.stdout.readline().split()[0])
        connection = stack.enter_context(closing(http.client.HTTPConnection(address.netloc, timeout=60)))
        connection.request("GET", "/")
        headers = {"x-demo-token": read_token(connection.getresponse().read().decode())}
        connection.request("POST", "/clean?model=0&sigma=auto", encode(np.zeros((6000, 6000), np.uint8)), headers)
        answer = stack.enter_context(closing(connection.getresponse()))
        while "progress" not in json.loads(answer.readline()):
            pass
        assert list(tmp_path.glob("basicsr-demo-*/*/picture"))
        process.send_signal(number)
        assert answer.read().splitlines()[-1] == b'{"error": "basicsr demo was stopped."}'
        assert process.wait(60) == 130
        assert process.stderr.read() == "basicsr: stopped.\n"
    assert not list(tmp_path.glob("basicsr-demo-*"))


def test_a_port_that_is_taken(models, capsys):
    with demo_page.listen("127.0.0.1", 0) as taken:
        assert run_command("--model", models[0], "--port", str(taken.getsockname()[1])) == 2
    assert "Give another --port or --host" in capsys.readouterr().err


def test_a_host_and_a_device_that_are_none(models, capsys):
    assert run_command("--model", models[0], "--port", "0", "--host", "127..0.0.1") == 2
    assert "Cannot listen on 127..0.0.1:0" in capsys.readouterr().err
    with pytest.raises(InputError, match="device='cuda:99' cannot be used"):
        Cleaner([], "cuda:99")


def test_a_file_that_is_no_network(tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"bad")
    with pytest.raises(InputError, match="bad.pth: not a whole checkpoint"):
        Cleaner([str(tmp_path / "bad.pth")])


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(cleaner):
    import uvicorn

    with demo_page.listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(demo_page.make_app(cleaner), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def open_page(browser, address):
    """Opens the page; when it is closed, nothing may have been complained about or asked of others."""

    @contextmanager
    def open_with(complaints=(), **context):
        with watch_page(browser, address, **context) as (page, messages, requests):
            yield page
        assert messages == list(complaints)
        assert all(url.startswith((address, "blob:", "data:")) for url in requests), requests

    return open_with


@pytest.fixture
def picture(tmp_path):
    pixels = cv2.imread(str(make_pictures(tmp_path / "pictures", 1, (90, 120)) / "0.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "mein Bild ü.png"), pixels.astype(np.uint16) * 257)
    return tmp_path / "mein Bild ü.png"


def test_choose_look_download(open_page, picture, models, tmp_path):
    pixels = cv2.imread(str(picture), cv2.IMREAD_UNCHANGED)
    expected = Denoiser(models[0], device="cpu")(pixels)
    with open_page() as page:
        page.set_input_files("#file", picture)
        page.wait_for_selector("#result", state="visible")
        assert page.locator("#facts li").first.inner_text() == "120 × 90, grey, PNG, 16 bits"
        assert page.locator("#after").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [120, 90]
        for strength in (1, 0.5):
            page.locator("#strength").fill(str(round(100 * strength)))
            with page.expect_download() as started:
                page.get_by_role("button", name="Download").click()
            assert started.value.suggested_filename == "mein Bild ü_clean.png"
            started.value.save_as(tmp_path / "result.png")
            result = cv2.imread(str(tmp_path / "result.png"), cv2.IMREAD_UNCHANGED)
            wanted = np.round(pixels + strength * (expected.astype(float) - pixels))
            assert result.dtype == np.uint16 and np.abs(result - wanted).max() <= 1
        assert page.locator("#after").evaluate("image => getComputedStyle(image).opacity") == "0.5"


def test_a_file_may_change_once_it_is_cleaned(open_page, picture):
    """A browser reads a file when it is sent, and refuses one that is not what was chosen."""
    with open_page() as page:
        page.set_input_files("#file", picture)
        page.wait_for_selector("#result", state="visible")
        picture.write_bytes(b"another")
        page.locator("#strength").fill("50")
        with page.expect_download():
            page.get_by_role("button", name="Download").click()
        page.locator("#model").select_option(label="told")
        page.get_by_role("button", name="Clean again").click()
        page.locator("#facts").get_by_text("told").wait_for()
        assert not page.locator("#error").is_visible()


def test_who_cannot_see_it_is_told(open_page, picture):
    """What has the focus is there, and a reader of the screen says what happens."""
    with open_page() as page:
        focus = "document.activeElement.id"
        page.locator("#file").focus()
        page.set_input_files("#file", picture)
        page.wait_for_selector("#result", state="visible")
        assert page.evaluate(focus) == "result"
        assert page.locator("#status").inner_text() == f"{picture.name} is cleaned"
        picture.with_name("bad.png").write_bytes(b"bad")
        page.set_input_files("#file", picture.with_name("bad.png"))
        page.wait_for_selector("#error", state="visible")
        page.get_by_role("button", name="Close").click()
        assert page.evaluate(focus) == "result"


def test_what_is_chosen_shows_in_forced_colours(open_page):
    with open_page(forced_colors="active") as page:
        page.locator("#model").select_option(label="told")
        color = "span => getComputedStyle(span).color"
        chosen, other = page.locator("#noise input + span").all()
        assert chosen.evaluate(color) != other.evaluate(color)


def read_cut(page):
    """How many pixels of the picture before are cut off at its right."""
    style = page.locator("#side").evaluate("side => getComputedStyle(side).clipPath")
    return float((re.findall(r"[\d.]+", style) * 2)[1])  # one number stands for all sides


def test_divider_follows_keyboard_and_mouse(open_page, picture):
    with open_page() as page:
        page.set_input_files("#file", picture)
        page.wait_for_selector("#result", state="visible")
        width = page.locator("#stage").evaluate("stage => stage.offsetWidth")
        assert width % 120 == 0 and width > 360 and read_cut(page) == width / 2
        page.locator("#position").focus()
        page.keyboard.press("End")
        assert read_cut(page) == 0
        box = page.locator("#pan").bounding_box()
        page.mouse.move(box["x"] + 3 * width / 4, box["y"] + 5)
        page.mouse.down()
        page.mouse.move(box["x"] + width / 4, box["y"] + 20)
        page.mouse.up()
        assert read_cut(page) == pytest.approx(3 * width / 4, abs=2)


def test_dropped_picture_and_noise_level(open_page, picture):
    with open_page() as page:
        assert not page.locator("#noise").is_visible()
        page.locator("#model").select_option(label="told")
        page.locator("#noise").get_by_label("Set", exact=True).check()
        page.locator("#sigma").fill("60")
        assert page.locator("#sigma-value").inner_text() == "60"
        transfer = page.evaluate_handle(
            """data => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], "dropped.png"));
              return transfer;
            }""",
            base64.b64encode(picture.read_bytes()).decode(),
        )
        with page.expect_request("**/clean**") as asked:
            page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
        assert asked.value.url.endswith("model=1&sigma=60")
        page.wait_for_selector("#result", state="visible")
        assert not page.get_by_role("button", name="Clean again").is_visible()  # it would give the same
        page.locator("#sigma").fill("30")
        with page.expect_request("**/clean?model=1&sigma=30"):
            page.get_by_role("button", name="Clean again").click()
        page.wait_for_selector("#result", state="visible")


def test_errors_are_shown_and_the_page_goes_on(open_page, picture, tmp_path):
    (tmp_path / "bad.png").write_bytes(picture.read_bytes()[:100])
    (tmp_path / "large.png").write_bytes(bytes(LIMITS.upload + 1))
    with open_page() as page:
        page.set_input_files("#file", tmp_path / "bad.png")
        page.wait_for_selector("#error", state="visible")
        assert "bad.png: the file is cut off" in page.locator("#error").inner_text()
        page.set_input_files("#file", tmp_path / "large.png")
        assert "large.png is too large" in page.locator("#error").inner_text()
        page.set_input_files("#file", picture)
        page.wait_for_selector("#result", state="visible")
        assert not page.locator("#error").is_visible()
        page.set_input_files("#file", tmp_path / "bad.png")  # what is shown then is still the one before
        page.wait_for_selector("#error", state="visible")
        page.locator("#strength").fill("50")
        with page.expect_download() as started:
            page.get_by_role("button", name="Download").click()
        assert started.value.suggested_filename == f"{picture.stem}_clean.png"


def test_progress_can_be_cancelled(open_page, picture, cleaner, monkeypatch):
    ended = threading.Event()

    def work(data, model, sigma, report):
        try:
            for number in range(2000):
                report({"progress": 0.4 + number / 1e5})
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(cleaner, "clean", work)
    with open_page() as page:
        page.set_input_files("#file", picture)
        page.get_by_text(re.compile("^Cleaning, 4")).wait_for()  # a script to wait for would be what the page forbids
        page.get_by_role("button", name="Cancel").click()
        page.wait_for_selector("#choose", state="visible")
        assert not page.locator("#error").is_visible()
    assert ended.wait(5)


def test_a_telephone_shows_it_without_scrolling_sideways(open_page, picture):
    with open_page(width=360, height=740) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.set_input_files("#file", picture)
        page.wait_for_selector("#result", state="visible")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator("#zoom").get_by_label("4×").check()
        assert page.locator("#pan").evaluate("pan => pan.scrollWidth > pan.clientWidth")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_dark_and_light_have_their_own_colours(open_page):
    check_dark_and_light(open_page)
