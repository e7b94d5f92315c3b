"""The page in a headless browser: type, stream, compare, stop, switch the language, a narrow screen, no markup."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.minutes

playwright = pytest.importorskip("playwright.sync_api", reason="Python's playwright is not installed")
pytest.importorskip("starlette", reason="pip install -e '.[serve]'")

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not BROWSER:
    pytest.skip("no Chromium on this machine (apt-get install chromium)", allow_module_level=True)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PICTURES = os.environ.get("AURORA_SCREENSHOTS")  # a folder to keep them in, for a look


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 800, "light"), (390, 844, "dark")], ids=["wide and light", "phone and dark"])
def page(browser, url: str, models, monkeypatch, request) -> Iterator:
    for model in models.values():  # random weights end after an unknown number of tokens
        monkeypatch.setattr(model, "ends", set())
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, locale="zh-CN")
    page = context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on(
        "console", lambda line: failures.append(line.text) if line.type == "error" and "400" not in line.text else None
    )
    page.on("request", lambda asked: failures.append(asked.url) if not asked.url.startswith((url, "data:")) else None)
    page.goto(url)
    page.wait_for_selector(".column")
    yield page
    context.close()
    assert not failures


def until(page, expression: str) -> None:
    """Waits for an expression of the page; Playwright's own way evaluates text, which the page's policy forbids."""
    end = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.02)


def keep(page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}-{page.viewport_size['width']}.png")


def slowed(models, monkeypatch, seconds: float = 0.05) -> None:
    for model in models.values():

        def slow(*args, forward=model.model.forward, **kwargs):
            time.sleep(seconds)
            return forward(*args, **kwargs)

        monkeypatch.setattr(model.model, "forward", slow)


def scripted(model, monkeypatch, text: str) -> None:
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    monkeypatch.setattr(model, "_tokens", lambda *_: iter(ids))


def test_a_chat_of_two_rounds(page, models, monkeypatch):
    scripted(models["tuned"], monkeypatch, "您好！很高兴见到您。\n有什么可以帮您？")
    page.fill("#text", "你好")
    page.press("#text", "Enter")
    page.wait_for_selector(".facts:has-text('中文')")
    assert page.inner_text(".assistant") == "您好！很高兴见到您。\n有什么可以帮您？"
    assert "111111111111" in page.inner_text(".facts") and "词元/秒" in page.inner_text(".facts")
    sent = []
    page.on("request", lambda asked: sent.append(asked.post_data_json))
    page.fill("#text", "一")
    page.press("#text", "Shift+Enter")
    page.type("#text", "二")
    page.click("#send")
    until(page, "document.querySelectorAll('.facts code').length === 2")
    assert [message["content"] for message in sent[0]["messages"]] == [
        "你好",
        "您好！很高兴见到您。\n有什么可以帮您？",
        "一\n二",
    ]
    keep(page, "chat")


def test_one_prompt_two_columns_that_stream_at_once(page, models, monkeypatch):
    slowed(models, monkeypatch)
    for model in models.values():
        monkeypatch.setattr(model, "context", 40)
    page.click("#compare")
    assert page.eval_on_selector_all(".column", "nodes => nodes.map(node => node.dataset.model)") == ["base", "tuned"]
    page.click("#prompts summary")
    keep(page, "prompts")
    page.click("#prompt-list button:has-text('你好')")
    until(
        page,
        "[...document.querySelectorAll('.assistant.busy')].filter(node => node.textContent.length > 2).length === 2",
    )
    until(page, "document.querySelectorAll('.facts code').length === 2")
    hashes = page.eval_on_selector_all(".facts code", "nodes => nodes.map(node => node.textContent)")
    assert hashes == ["0" * 12, "1" * 12]
    answers = page.eval_on_selector_all(".assistant", "nodes => nodes.map(node => node.textContent)")
    assert answers[0] != answers[1]
    keep(page, "compare")


def test_stop_keeps_what_has_come_and_the_next_prompt_is_answered(page, models, monkeypatch):
    slowed(models, monkeypatch, 0.1)
    page.fill("#text", "你好")
    page.click("#send")
    until(page, "document.querySelector('.assistant')?.textContent.length > 1")
    page.click("#stop")
    page.wait_for_selector(".facts:has-text('已停止')")
    before = page.inner_text(".assistant")
    time.sleep(0.3)
    assert page.inner_text(".assistant") == before != ""
    page.fill("#text", "再来")
    page.click("#send")
    until(page, "document.querySelectorAll('.assistant').length === 2")
    page.click("#stop")
    page.wait_for_selector("#send:visible")


def test_the_language_of_the_page_changes_and_the_conversation_stays(page, models, monkeypatch):
    scripted(models["tuned"], monkeypatch, "Hello there, how are you?")
    page.fill("#text", "你好")
    page.click("#send")
    page.wait_for_selector(".facts:has-text('其他语言')")
    page.click("#language")
    assert page.inner_text("#send") == "Send" and page.get_attribute("html", "lang") == "en"
    assert "tokens/s" in page.inner_text(".facts") and "other language" in page.inner_text(".facts")
    assert page.inner_text(".assistant") == "Hello there, how are you?"
    keep(page, "english")
    page.click("#new")
    assert not page.query_selector_all(".message")


def test_text_of_a_model_is_text(page, models, monkeypatch):
    evil = "<img src=x onerror=\"document.title='hacked'\"> <script>document.title='hacked'</script> **b**"
    scripted(models["tuned"], monkeypatch, evil)
    page.fill("#text", "<b>你好</b>")
    page.click("#send")
    page.wait_for_selector(".facts code")
    assert page.inner_text(".assistant") == evil and page.inner_text(".user") == "<b>你好</b>"
    assert page.title() == "Aurora" and not page.query_selector(".message img, .message script, .message b")


def test_nothing_is_wider_than_the_screen(page, models, monkeypatch):
    scripted(models["tuned"], monkeypatch, "很长" * 200 + "x" * 400)
    page.fill("#text", "y" * 300)
    page.click("#send")
    page.wait_for_selector(".facts code")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(
        "[...document.querySelectorAll('.column')].every(node => node.scrollWidth <= node.clientWidth)"
    )


def test_a_refusal_of_the_server_is_told_and_the_conversation_goes_on(page, models, monkeypatch):
    page.fill("#text", "好" * 5000)
    page.click("#send")
    page.wait_for_selector(".assistant.failed")
    assert "and the context of this model 4,096" in page.inner_text(".assistant.failed")
    scripted(models["tuned"], monkeypatch, "好的。")
    page.fill("#text", "你好")
    page.click("#send")
    page.wait_for_selector(".facts code")
    assert page.inner_text(".assistant >> nth=1") == "好的。"
