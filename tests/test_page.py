"""The page in a real browser, over the real service with the built-in model.

Writes pictures of the page to .test-home/pictures for inspection.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from browser import Watched, chromium
from fake_hub import FakeHub, fake_hub
from rerankd.config import ScoringSettings
from rerankd.formats import model_files
from rerankd.recipes import calibrations
from rerankd.serving.prepare_model import resolve_file
from support import ROOT, Program, start_serving
from test_calibration import CALIBRATION

PICTURES = ROOT / ".test-home" / "pictures"
STATIC = ROOT / "src" / "rerankd" / "api" / "static"
REPO = "org/other-GGUF"
# The machine may be busy with other tests.
expect.set_options(timeout=30_000)
XLMR = str(ROOT / "tests" / "golden" / "xlmr-head.gguf")
BAMBOO = "Bamboo is almost the whole diet of a giant panda: up to 38 kg a day."
# A black dot, as PNG.
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}

Open = Callable[..., Watched]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def started(home: Path) -> Iterator[Callable[..., Program]]:
    """Starts `rerankd serve`."""
    running: list[Program] = []

    def start(*arguments: str, **env: str) -> Program:
        running.append(start_serving(home, *arguments, **env))
        return running[-1]

    yield start
    for program in running:
        program.stop()
        assert program.process.stderr is not None
        program.process.stderr.close()


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    """A hub whose last byte waits until a test lets it go."""
    with fake_hub(
        repos={REPO: {"other-Q8_0.gguf": Path(XLMR).read_bytes()}}, hang=threading.Event()
    ) as running:
        yield running


@pytest.fixture(scope="module")
def url(started: Any, home: Path, hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The service that most tests use: two models that may be changed, and a data folder of its own."""
    own = tmp_path_factory.mktemp("home")
    (own / "models").mkdir()
    for file in (home / "models").iterdir():
        (own / "models" / file.name).symlink_to(file)
    config = own / "rerankd.toml"
    config.write_text(f'model = ["tiny", "builtin:e5"]\n[models.tiny]\nref = "{XLMR}"\n')
    env = {"HF_ENDPOINT": hub.url, "MODELSCOPE_ENDPOINT": hub.url, "HF_HOME": str(own / "hf")}
    address: str = started("--config", str(config), RERANKD_HOME=str(own), RERANKD_ADMIN_API="1", **env).url
    return address


@pytest.fixture
def tab(browser: Browser, url: str) -> Iterator[Open]:
    """Opens a tab of the page; at the end there was no error and no request to another host."""
    opened: list[Watched] = []

    def open_tab(at: str = url, **options: Any) -> Watched:
        opened.append(Watched(browser, at, **options))
        return opened[-1]

    yield open_tab
    for one in opened:
        one.close()


def texts(page: Page, column: int = 0) -> list[str]:
    return page.locator(".result").nth(column).locator(".text").all_text_contents()


def accessibility_faults(page: Page) -> list[str]:
    """What axe finds in the page as it is now."""
    return [
        f"{fault['id']}: {node['html'][:200]} {node['any'][0]['message'] if node['any'] else ''}"
        for fault in Axe().run(page).response["violations"]
        for node in fault["nodes"]
    ]


def ask_example(page: Page) -> None:
    page.get_by_role("button", name="Load the example").click()
    expect(page.locator("#answers:not([aria-busy]) .rows .row")).to_have_count(5)


# --- try it ---


def test_the_first_visit_shows_a_ranked_example_above_the_fold(tab: Open, url: str) -> None:
    page = tab().open()
    expect(page.locator(".rows .row")).to_have_count(5)
    expect(page.locator("#query")).to_have_value("What do pandas eat?")
    assert page.locator("main button.primary:visible").count() == 1
    for row in page.locator(".rows .row").all():
        box = row.bounding_box()
        assert box and box["y"] + box["height"] < 900
    page.reload()  # the second visit is the visitor's own
    expect(page.locator("#served")).to_contain_text("ready")
    expect(page.locator("#query")).to_have_value("")
    assert page.locator(".rows .row").count() == 0


def test_on_a_phone_the_results_come_into_view(tab: Open) -> None:
    page = tab(**PHONE).open()
    expect(page.locator(".rows .row")).to_have_count(5)
    assert page.evaluate("scrollY") == 0  # nobody asked for the example
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator(".rows .row").first).to_be_in_viewport()


def test_a_request_can_be_cancelled(tab: Open) -> None:
    shown = tab()
    shown.page.route("**/v1/rerank", lambda route: None)  # no answer comes
    page = shown.open()
    page.locator("#query").fill("pandas")
    page.locator("#documents").fill("a bear")
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator("#elapsed")).to_have_text(re.compile(r"^\d+\.\d s$"))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#progress")).to_be_hidden()
    assert page.locator(".card.bad").count() == 0


def test_a_server_that_hangs_is_not_shown_as_ready(tab: Open) -> None:
    shown = tab()
    page = shown.open()
    expect(page.locator("#served")).to_contain_text("ready")
    shown.page.route("**/v1/status*", lambda route: None)
    expect(page.locator("#served")).to_have_text("No answer for 5 s")
    expect(page.locator("#served .dot")).to_have_class("dot failed")


def test_a_request_before_the_model_list_has_loaded_shows_the_model_that_answered(tab: Open) -> None:
    shown = tab()
    shown.page.route("**/v1/status*", lambda route: None)  # the list does not come
    page = shown.open()
    ask_example(page)
    expect(page.locator(".result h2")).not_to_be_empty()


def test_the_example_in_one_click(tab: Open) -> None:
    shown = tab()
    page = shown.open()
    page.locator("#model").select_option("builtin:e5")
    ask_example(page)
    expect(page.locator(".result h2")).to_have_text("builtin:e5")
    assert texts(page)[0] == BAMBOO
    scores = [float(text) for text in page.locator(".score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True) and 0 <= scores[-1] < scores[0] <= 1
    widths = [bar.bounding_box()["width"] for bar in page.locator(".fill").all()]  # type: ignore[index]
    whole = page.locator(".track").first.bounding_box()["width"]  # type: ignore[index]
    assert [width / whole for width in widths] == pytest.approx(scores, abs=0.02)
    assert page.locator(".moved > [aria-hidden]").first.inner_text() == "▲2"
    expect(page.locator(".timing")).to_contain_text("5 documents in")
    shown.picture(PICTURES, "try")


def test_top_n_and_the_keyboard_alone(tab: Open) -> None:
    page = tab().open()
    expect(page.locator(".rows .row")).to_have_count(5)
    page.locator("#query").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("what is a panda?")
    for _ in ("Load the example", "Clear", "Documents"):
        page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("bread\na bear of China")
    page.locator("#top").focus()
    page.keyboard.type("1")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".rows .row")).to_have_count(1)
    assert texts(page)[0] in ("bread", "a bear of China")


def test_a_truncated_document_is_marked_with_a_warning(tab: Open) -> None:
    page = tab().open()
    page.locator("#query").fill("pandas")
    page.locator("#documents").fill("panda bears eat bamboo " * 100 + "\nshort")
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator(".tag")).to_have_text("truncated")
    expect(page.locator(".notes")).to_contain_text("document 0")
    page.get_by_role("button", name="show all").click()
    assert max(map(len, texts(page))) > 2000


def test_an_unscored_document_is_marked_and_shows_no_score(tab: Open) -> None:
    shown = tab()

    def out_of_time(route: Route) -> None:
        asked = route.request.post_data_json
        route.continue_(post_data={**asked, "max_scored_documents": 1})

    shown.page.route("**/v1/rerank", out_of_time)
    page = shown.open()
    page.locator("#query").fill("pandas")
    page.locator("#documents").fill("a bear\nbread\na river")
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator(".tag")).to_have_text(["not scored", "not scored"])
    expect(page.locator(".notes")).to_contain_text("documents 1, 2")
    assert texts(page) == ["a bear", "bread", "a river"]
    assert page.locator(".score").all_inner_texts()[1:] == ["–", "–"]


def test_an_error_shows_the_servers_message(tab: Open) -> None:
    shown = tab()
    page = shown.open()
    page.locator("#query").fill("panda " * 2000)
    page.locator("#documents").fill("a")
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator(".card.bad")).to_contain_text("send truncate_query: true")
    shown.forget("400")


@pytest.mark.parametrize(
    ("name", "content", "documents", "counted"),
    [
        ("a.txt", "one\ntwo\r\n", ["one", "two"], "2 documents, one per line"),
        ("c.txt", "one\n\ntwo\r\n", ["one", "two"], "2 documents, [one per line]"),
        ("d.txt", "one\nmore\n\ntwo", ["one\nmore", "two"], "2 documents, [separated by empty lines]"),
        ("a.jsonl", '{"text": "one"}\n"two, \\"2\\""\n', ["one", 'two, "2"'], "2 documents, [JSON Lines]"),
        ("a.json", '[{"text": "one"}, "two"]', ["one", "two"], "2 documents, [a JSON array]"),
        (
            "a.csv",
            '\ufeffid,text\n1,"one, ""1"""\n2,"two\nlines"\n',
            ['one, "1"', "two\nlines"],
            "2 documents, [CSV, column text]",
        ),
        (
            "b.csv",
            "7,the longest column\n8,of all\n",
            ["the longest column", "of all"],
            "2 documents, [CSV, column 2]",
        ),
        (
            "a.tsv",
            "text\tid\na b, c\t1\nd; e\t2\n",
            ["a b, c", "d; e"],
            "2 documents, [CSV, column text]",
        ),
        (
            "body.json",
            '{"query": "one", "documents": ["one", {"text": "two"}], "top_n": 3}',
            ["one", "two"],
            "2 documents, [a request]",
        ),
    ],
)
def test_a_dropped_file(tab: Open, name: str, content: str, documents: list[str], counted: str) -> None:
    page = tab().open()
    dropped = page.evaluate_handle(
        "([name, content]) => { const all = new DataTransfer();"
        " all.items.add(new File([content], name)); return all; }",
        [name, content],
    )
    page.dispatch_event("#drop", "dragenter", {"dataTransfer": dropped})
    expect(page.locator(".dropping")).to_be_visible()
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    expect(page.locator(".dropping")).to_be_hidden()
    way = re.search(r"\[(.+)\]", counted)
    expect(page.locator("#counted")).to_have_text(counted.replace(way[0], "") if way else counted)
    if way:
        expect(page.locator("#reading option:checked")).to_have_text(way[1])
    page.locator("#query").fill("one")
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator(".rows .row")).to_have_count(len(documents))
    assert sorted(texts(page)) == sorted(documents)


def test_an_image_is_a_document(tab: Open) -> None:
    shown = tab()
    page = shown.open()
    sent: list[Any] = []
    page.on(
        "request", lambda one: sent.append(one.post_data_json) if one.url.endswith("/v1/rerank") else None
    )
    page.locator("#query").fill("a dot")
    page.locator("#documents").fill("a bear")
    for _ in range(2):
        page.locator("#file").set_input_files({"name": "dot.png", "mimeType": "image/png", "buffer": DOT})
    expect(page.locator("#images button")).to_have_count(2)
    page.get_by_role("button", name="Remove this image").first.click()
    expect(page.locator("#images button")).to_have_count(1)
    page.get_by_role("button", name="Rerank").click()
    # This model reads texts, and says which ones read images.
    expect(page.locator(".card.bad")).to_contain_text("Qwen3-VL-Reranker")
    shown.forget("400")
    image = sent[-1]["documents"][1]["image"]
    assert image.startswith("data:image/png;base64,") and base64.b64decode(image.partition(",")[2]) == DOT
    page.locator("#documents").fill("")
    with page.expect_response("**/v1/rerank"):
        page.get_by_role("button", name="Rerank").click()  # an image alone is enough
    expect(page.locator("#answers")).not_to_have_attribute("aria-busy", "true")
    assert [*sent[-1]["documents"][0]] == ["image"]
    shown.forget("400")


def test_a_pasted_table_is_read_by_the_column_that_is_chosen(tab: Open) -> None:
    page = tab().open()
    page.locator("#query").fill("bears")
    page.locator("#documents").fill('title,text\nA,"a bear"\nB,"a river"')
    expect(page.locator("#reading option")).to_have_text(
        ["CSV, column text", "CSV, column title", "one per line"]
    )
    page.locator("#reading").select_option(label="CSV, column title")
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator(".rows .row")).to_have_count(2)
    assert sorted(texts(page)) == ["A", "B"]


def test_a_long_list_can_be_filtered_and_exported(tab: Open) -> None:
    page = tab().open()
    page.locator("#model").select_option("tiny")
    page.locator("#query").fill("bears")
    page.locator("#documents").fill(
        "\n".join(f"document {at} about {'bears' if at % 2 else 'bread'}" for at in range(2000))
    )
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator(".rows .row")).to_have_count(2000)
    page.get_by_label("Filter").fill("about BREAD")
    expect(page.locator(".filters [role=status]")).to_contain_text("1000 of 2000")
    scores = sorted(float(text) for text in page.locator(".score").all_text_contents())
    page.get_by_label("Filter").fill("")
    page.get_by_label("Lowest score").fill(f"{scores[1000]:.2f}")
    expect(page.locator(".filters [role=status]")).not_to_contain_text("2000 of 2000")
    with page.expect_download() as csv:
        page.get_by_role("button", name="CSV", exact=True).click()
    lines = csv.value.path().read_text(encoding="utf-8").splitlines()
    assert lines[0] == '"model","rank","index","score","text"' and len(lines) == 2001
    with page.expect_download() as exported:
        page.locator(".filters").get_by_role("button", name="JSON", exact=True).click()
    rows = json.loads(exported.value.path().read_text(encoding="utf-8"))
    assert [row["rank"] for row in rows] == [*range(1, 2001)] and {row["model"] for row in rows} == {"tiny"}


def clipboard(page: Page) -> str:
    return str(page.evaluate("navigator.clipboard.readText()"))


@pytest.mark.parametrize("kind", ["curl", "Python", "JavaScript"])
def test_the_copied_code_runs(tab: Open, kind: str, url: str) -> None:
    shown = tab(permissions=["clipboard-read", "clipboard-write"])
    page = shown.open()
    page.locator("#query").fill('it\'s a "panda" $HOME `id`?')
    page.locator("#documents").fill("a bear\n它是一种熊 'quoted' \\n")
    page.get_by_role("button", name="Rerank").click()
    page.get_by_role("button", name=kind, exact=True).click()
    page.locator("#copy-code").click()
    expect(page.locator("#copy-code")).to_have_text("Copied")
    argv = {"curl": ["bash", "-c"], "Python": [sys.executable, "-c"], "JavaScript": ["node", "-e"]}[kind]
    if kind == "JavaScript" and shutil.which("node") is None:
        pytest.skip("the copied JavaScript needs Node.js 18")
    done = subprocess.run([*argv, clipboard(page)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    score = page.locator(".score").first.inner_text()
    best = (
        json.loads(done.stdout)["results"][0]["relevance_score"] if kind == "curl" else done.stdout.split()[1]
    )
    assert f"{float(best):.4f}" == score


def test_copying_works_without_the_clipboard_api(tab: Open) -> None:
    page = tab(permissions=["clipboard-read", "clipboard-write"]).open()
    ask_example(page)
    page.evaluate("Object.defineProperty(navigator.clipboard, 'writeText', {value: () => Promise.reject()})")
    page.get_by_role("button", name="JSON", exact=True).click()
    page.locator("#copy-code").click()
    assert json.loads(clipboard(page))["query"] == "What do pandas eat?"


def test_two_side_by_side(tab: Open) -> None:
    shown = tab()
    page = shown.open()
    page.get_by_label("Compare with a second model").check()
    expect(page.locator("#model-b")).to_have_value("builtin:e5")
    page.get_by_role("button", name="Load the example").click()
    expect(page.locator(".result")).to_have_count(2)
    assert page.locator(".result h2").all_inner_texts() == ["tiny", "builtin:e5"]
    assert sorted(texts(page, 0)) == sorted(texts(page, 1)) and texts(page, 1)[0] == BAMBOO
    ranks = [{text: at for at, text in enumerate(texts(page, column))} for column in (0, 1)]
    top = len({*texts(page, 0)[:3]} & {*texts(page, 1)[:3]})
    compared = page.locator(".compared")
    expect(compared).to_contain_text(f"top 3: {top} in common")
    up = sum(ranks[0][text] > ranks[1][text] for text in ranks[0])
    expect(compared.locator("path.up")).to_have_count(up)
    first = compared.locator("li").first.inner_text()
    most = max(abs(ranks[0][text] - ranks[1][text]) for text in ranks[0])
    was, now = map(int, re.findall(r"\d+", first)[:2])
    assert abs(was - now) == most
    left, right = (page.locator(".result").nth(at).bounding_box() for at in (0, 1))
    assert left and right and left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
    page.locator(".result").first.locator(".row").first.hover()
    expect(page.locator(".row.lit")).to_have_count(2)
    shown.picture(PICTURES, "compare")


# --- connect ---


def test_a_cascade_shows_its_stages(tab: Open, started: Any, tmp_path: Path) -> None:
    config = tmp_path / "cascade.toml"
    stages = '["builtin:e5", {model = "tiny", keep = 2}]'
    config.write_text(f'[models.both]\nstages = {stages}\n[models.tiny]\nref = "{XLMR}"\n')
    page = tab(started("--config", str(config)).url).open()
    expect(page.locator("#model option")).to_have_text(["both", "builtin:e5", "tiny"])
    ask_example(page)
    expect(page.locator(".stages")).to_contain_text("builtin:e5: 5 documents in")
    expect(page.locator(".stages")).to_contain_text("→ tiny: 2 documents in")
    expect(page.locator(".row .tag", has_text="earlier stage")).to_have_count(3)
    page.get_by_role("link", name="Status").click()
    expect(page.get_by_role("article", name="both")).to_contain_text(
        "builtin:e5 for all documents → tiny for the best 2"
    )
    assert accessibility_faults(page) == []


def test_a_program_is_tested_when_the_models_are_known(tab: Open) -> None:
    """What is drawn before that is drawn again, and a response would be lost."""
    shown = tab()
    shown.page.route("**/v1/status*", lambda route: None)
    page = shown.open("connect")
    button = page.get_by_role("button", name="Test")
    expect(button).to_be_disabled()
    page.unroute("**/v1/status*")
    expect(button).to_be_enabled()


def test_each_programs_request_is_answered(tab: Open, url: str) -> None:
    shown = tab()
    page = shown.open("connect")
    expect(page.locator("#client-list a")).to_have_count(7)
    programs = page.locator("#client-list a").all_inner_texts()
    assert programs[0] == "Dify"
    for name in programs:
        page.locator("#client-list").get_by_text(name, exact=True).click()
        expect(page.locator("#client h2")).to_have_text(name)
        page.get_by_role("button", name="Test").click()
        expect(page.locator(".tested .right")).to_be_visible()
        assert url in page.locator("#client").inner_text()
    page.locator("#client-list").get_by_text("Dify", exact=True).click()
    expect(page.locator("#client h2")).to_have_text("Dify")
    shown.picture(PICTURES, "connect")


def test_the_settings_have_this_servers_values(tab: Open, url: str) -> None:
    page = tab(permissions=["clipboard-read", "clipboard-write"]).open("connect/dify")
    page.get_by_role("button", name="Copy API endpoint URL").click()
    assert clipboard(page) == f"{url}/v1"
    expect(page.locator("#local")).to_be_visible()
    page.locator("#address").fill("http://192.0.2.7:11440/")
    expect(page.locator("#local")).to_be_hidden()
    page.get_by_role("button", name="Copy API endpoint URL").click()
    assert clipboard(page) == "http://192.0.2.7:11440/v1"
    page.get_by_role("button", name="Copy Model Name").click()
    assert clipboard(page) == "tiny"


def test_the_curl_of_connect_runs(tab: Open) -> None:
    page = tab(permissions=["clipboard-read", "clipboard-write"]).open("connect/curl")
    page.locator("#model-c").select_option("builtin:e5")
    page.get_by_role("button", name="Copy Code").click()
    done = subprocess.run(["bash", "-c", clipboard(page)], capture_output=True, text=True, timeout=60)
    assert [row["index"] for row in json.loads(done.stdout)["results"]] == [2, 1, 0]


# --- status ---


def engine(url: str) -> dict[str, Any]:
    """What the status tells of the first model's engine."""
    told: dict[str, Any] = httpx.get(f"{url}/v1/status", trust_env=False).json()["models"][0]["engine"]
    return told


def test_status_shows_the_model_its_engine_and_recent_requests(tab: Open, url: str) -> None:
    shown = tab()
    page = shown.open()
    ask_example(page)
    page.get_by_role("link", name="Status").click()
    card = page.get_by_role("article", name="tiny")
    running = engine(url)
    said = (f"{running['program']}, pid {running['pids'][0]}", running["why"], running["last_lines"][-1])
    for text in ("ready", "cross_encoder → sigmoid", "256 tokens", "MiB", "its sigmoid", *said):
        expect(card).to_contain_text(text)
    card.get_by_text("Last lines of the engine").click()
    expect(card.locator(".log")).to_be_visible()
    expect(
        page.get_by_role("img", name=re.compile("^Requests: [1-9]")).locator("rect").first
    ).to_be_attached()
    shown.picture(PICTURES, "status")


@pytest.mark.parametrize(
    ("locale", "said"), [("en-US", "log loss 0.800 → 0.400"), ("zh-CN", "对数损失 0.800 → 0.400")]
)
def test_status_shows_the_reliability_of_a_calibrated_model(
    tab: Open, started: Any, tmp_path: Path, locale: str, said: str
) -> None:
    metadata = model_files.read(Path(XLMR))
    digest = calibrations.model_digest(metadata, resolve_file(metadata, ScoringSettings()).require())
    section = calibrations.section("tiny", replace(CALIBRATION, model=digest))
    config = tmp_path / "rerankd.toml"
    config.write_text(f'[models.tiny]\nref = "{XLMR}"\n\n{section}\n')
    shown = tab(started("--config", str(config)).url, locale=locale)
    page = shown.open("status")
    card = page.get_by_role("article", name="tiny")
    expect(card).to_contain_text(said)
    assert card.get_by_role("img").locator("circle").count() == len(CALIBRATION.reliability)
    expect(card).to_contain_text("sigmoid((raw + 1.5) / 2)")
    assert locale == "en-US" or "mine 上校准" in card.inner_text()
    assert accessibility_faults(page) == []
    shown.picture(PICTURES, f"calibrated-{locale}")


def test_status_after_the_engine_was_killed(tab: Open, url: str) -> None:
    before = engine(url)
    page = tab().open("status")
    card = page.get_by_role("article", name="tiny")
    expect(card).to_contain_text(f"pid {before['pids'][0]}")
    os.kill(before["pids"][0], signal.SIGKILL)
    expect(card).to_contain_text(f"{before['starts'] + 1}, unexpected exits: {before['lost'] + 1}")
    expect(card.locator(".pill")).to_have_text("ready")
    expect(card).not_to_contain_text(f"pid {before['pids'][0]}\n")


def test_pull_with_progress_and_delete(tab: Open, hub: FakeHub) -> None:
    assert hub.hang is not None
    shown = tab()
    page = shown.open("status")
    page.get_by_label("Pull a model").fill(f"hf:{REPO}")
    page.get_by_role("button", name="Pull").click()
    expect(page.locator("#pull-progress")).to_contain_text("downloading other-Q8_0.gguf")
    expect(page.locator("#pull-progress")).to_contain_text("/ 832 KiB")
    assert page.locator("#pull-progress progress").evaluate("bar => bar.position") < 1
    page.get_by_role("link", name="Try it").click()
    ask_example(page)  # a pull keeps nobody waiting
    page.get_by_role("link", name="Status").click()
    shown.picture(PICTURES, "pull")
    hub.hang.set()
    expect(page.locator("#pull-progress .right")).to_contain_text("is downloaded and served")
    card = page.get_by_role("article", name="other")
    expect(card.locator(".pill")).to_have_text("ready")
    card.get_by_role("button", name="Delete").click()
    card.get_by_role("button", name="Delete the files?").click()
    expect(card).to_have_count(0)


def test_unload_load_and_reload(tab: Open, url: str) -> None:
    page = tab().open("status")
    card = page.get_by_role("article", name="tiny")
    expect(card.locator(".pill")).to_have_text("ready")
    before = engine(url)
    card.get_by_role("button", name="Unload").click()
    expect(card.locator(".pill")).to_have_text("unloaded")
    expect(page.locator("#summary")).to_contain_text("All models are available")
    card.get_by_role("button", name="Load").click()
    expect(card.locator(".pill")).to_have_text("ready")
    card.get_by_role("button", name="Restart").click()
    expect(card.get_by_text("A new engine takes over")).to_be_visible()
    expect(card).to_contain_text(f"Starts{before['starts'] + 2}")


def test_a_model_that_is_not_served_is_shown_with_its_reason(tab: Open, started: Any, tmp_path: Path) -> None:
    late = tmp_path / "late.gguf"
    page = tab(started(XLMR, str(late)).url).open()
    page.get_by_role("link", name="Status").click()
    expect(page.locator("#served")).to_have_text("2 models refused")
    expect(page.locator("#summary")).to_contain_text("1 of 2 models are unavailable")
    card = page.get_by_role("article", name="late")
    expect(card.locator(".pill")).to_have_text("refused")
    expect(card).to_contain_text(f"The file {late} does not exist")
    expect(card).to_contain_text("Retry in")
    assert accessibility_faults(page) == []
    # What can't answer is not offered.
    page.get_by_role("link", name="Try it").click()
    expect(page.locator("#model option")).to_have_text(["xlmr-head"])
    late.write_bytes(Path(XLMR).read_bytes())
    page.get_by_role("link", name="Status").click()
    expect(page.locator("#summary")).to_contain_text("All models are available")
    expect(page.get_by_role("article", name="late").locator(".pill")).to_have_text("ready")


def test_a_model_that_was_not_pulled_is_not_deleted(tab: Open) -> None:
    shown = tab()
    card = shown.open("status").get_by_role("article", name="tiny")
    card.get_by_role("button", name="Delete").click()
    card.get_by_role("button", name="Delete the files?").click()
    expect(card.locator(".actions .wrong")).to_contain_text("was not pulled by rerankd")
    shown.forget("409")


# --- the key ---


def test_the_key_is_requested_and_kept_for_the_tab(tab: Open, started: Any) -> None:
    url = started(XLMR, RERANKD_API_KEY="a secret").url
    shown = tab(url, permissions=["clipboard-read", "clipboard-write"])
    page = shown.open()
    expect(page.get_by_role("dialog")).to_be_visible()
    shown.picture(PICTURES, "key")
    assert shown.errors == [] and accessibility_faults(page) == []
    page.get_by_role("textbox", name="API key").fill("wrong")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("alert")).to_contain_text("The API key is wrong")
    shown.forget("401")
    page.get_by_role("textbox", name="API key").fill("a secret")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    ask_example(page)
    page.locator("#copy-code").click()
    assert "a secret" not in clipboard(page)
    done = subprocess.run(
        ["bash", "-c", clipboard(page)],
        env={**os.environ, "RERANKD_API_KEY": "a secret"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert len(json.loads(done.stdout)["results"]) == 5
    page.reload()
    expect(page.locator("#served")).to_contain_text("ready")
    kept = "[JSON.stringify({...sessionStorage}), JSON.stringify({...localStorage}), document.cookie]"
    session, *elsewhere = page.evaluate(kept)
    assert "a secret" in session and not any("a secret" in place for place in elsewhere)
    page.get_by_role("link", name="Connect").click()
    assert "a secret" not in page.locator("#client").inner_text()
    page.get_by_role("button", name="Copy API Key").click()
    assert clipboard(page) == "a secret"
    page.get_by_role("link", name="Status").click()
    expect(page.locator(".model .facts dd").first).to_be_visible()
    # Without the admin API an engine can be restarted, and nothing else.
    assert not page.locator("#pull").is_visible()
    assert page.locator(".actions button:visible").all_inner_texts() == ["Restart"]
    other = shown.context.new_page()
    other.goto(f"{url}/")
    expect(other.get_by_role("dialog")).to_be_visible()
    page.get_by_role("button", name="Forget the API key").click()
    expect(page.get_by_role("dialog")).to_be_visible()


# --- everywhere ---


@pytest.mark.parametrize(
    "options",
    [{}, {"color_scheme": "dark"}, PHONE, {"locale": "zh-CN"}],
    ids=["light", "dark", "phone", "chinese"],
)
def test_every_section_is_accessible_and_fits(
    tab: Open, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    # Judged at rest: while answers fade in, their contrast is too low for a moment.
    shown = tab(**options, reduced_motion="reduce")
    name = request.node.callspec.id
    page = shown.open()
    expect(page.locator("#answers:not([aria-busy]) .rows .row")).to_have_count(
        5
    )  # the example of a first visit
    for part in ("try", "status", "connect", "api"):
        page.locator(f"header nav a[href='#{part}']").click()
        ready = {"try": ".rows", "status": ".model .facts dd", "connect": ".values dd", "api": ".operation"}[
            part
        ]
        expect(page.locator(ready).first).to_be_visible()
        for summary in page.locator("main section:visible summary").all()[:3]:
            summary.click()
        shown.picture(PICTURES, f"{name}-{part}")
        assert "[object" not in page.locator("main").inner_text()
        width, available = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width <= available, f"{part} is {width} pixels wide"
        assert accessibility_faults(page) == []


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_a_section_shows_at_times_is_accessible(tab: Open, locale: str, scheme: str) -> None:
    """Two models compared, a note, an error, the models that can be pulled."""
    shown = tab(locale=locale, color_scheme=scheme, reduced_motion="reduce")
    page = shown.open()
    expect(page.locator("#model option")).to_have_count(2)
    page.locator("#compare").check()
    page.locator("#query").fill("What do pandas eat?")
    page.locator("#documents").fill("panda bears eat bamboo " * 200 + "\nshort\nbread")
    page.locator("#ask button.primary").click()
    expect(page.locator(".result")).to_have_count(2)
    expect(page.locator(".compared")).to_be_visible()
    expect(page.locator(".notes").first).to_be_visible()
    shown.picture(PICTURES, f"compare-{locale}-{scheme}")
    assert accessibility_faults(page) == []
    page.locator("#compare").uncheck()
    page.locator("#query").fill("panda " * 2000)
    page.locator("#ask button.primary").click()
    expect(page.locator(".card.bad").first).to_be_visible()
    assert accessibility_faults(page) == []
    shown.forget("400")
    page.locator("header nav a[href='#status']").click()
    page.locator("#more summary").click()
    expect(page.locator("#catalog article").first).to_be_visible()
    shown.picture(PICTURES, f"catalog-{locale}-{scheme}")
    assert accessibility_faults(page) == []


def test_the_page_is_in_chinese_in_a_chinese_browser(tab: Open) -> None:
    shown = tab(locale="zh-CN")
    page = shown.open()
    expect(page.locator(".timing")).to_contain_text("5 篇文档")
    shown.picture(PICTURES, "zh-try")
    page.locator("#documents").fill("panda bears eat bamboo " * 200 + "\nshort")
    page.get_by_role("button", name="重排").click()
    expect(page.locator(".notes")).to_contain_text("截断")
    said = [page.locator(".result .notes").inner_text()]
    page.locator("#query").fill("panda " * 2000)
    page.get_by_role("button", name="重排").click()
    expect(page.locator(".card.bad")).to_be_visible()
    said.append(page.locator(".card.bad p").inner_text())
    shown.forget("400")
    for part in ("状态", "接入", "API"):
        page.get_by_role("link", name=part).click()
        if part == "状态":
            page.locator("#more summary").click()
            expect(page.locator("#catalog article").first).to_be_visible()
            said.append(page.locator("#part-status").inner_text())
        shown.picture(PICTURES, f"zh-{part}")
    # Four words in a row are a sentence; names, paths and figures have fewer.
    assert [found for text in said for found in re.findall(r"\b[a-z]{2,}(?: [a-z]{2,}){3,}", text)] == []
    page.get_by_role("button", name="English").click()
    expect(
        page.get_by_role("heading", name="Try it").or_(page.get_by_role("heading", name="API"))
    ).to_be_visible()
