"""The live page in headless Chromium: every function in both languages, in light, dark and narrow, by mouse and by keyboard; and what
axe-core finds wrong with it."""

import json
import os
import pathlib

import pytest

from gatewaylab.gateway import route
from gatewaylab.results import OUTPUT, new_task
from gatewaylab.wire import CLOSE, TEXT, closed_port, eventually, frame

ENGLISH = {"locale": "en-US", "viewport": {"width": 1280, "height": 900}}
CHINESE = {"locale": "zh-CN", "viewport": {"width": 1280, "height": 900}}
NARROW = {"locale": "en-US", "viewport": {"width": 375, "height": 740}, "colorScheme": "dark"}

# Resolves once an expression is true.
UNTIL = """
new Promise((done) => {
  const look = () => { const value = (%s); if (value) done(value); else setTimeout(look, 20); };
  look();
})
"""


class Page:
    """The page of a gateway."""

    def __init__(self, browser, port, look):
        self.browser = browser
        opened = browser.goto(f"http://127.0.0.1:{port}/", **look)
        assert opened["status"] == 200

    def until(self, expression):
        return self.browser.evaluate(UNTIL % expression)

    def until_says(self, selector, *words):
        """Waits for an element with all these words in it."""
        fits = f"(text) => {json.dumps(words)}.every((word) => text.includes(word))"
        return self.until(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.innerText).find({fits})")

    def text(self, selector):
        return self.browser.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText")

    def texts(self, selector):
        return self.browser.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.innerText)")

    def press(self, selector, key="Enter"):
        """Presses a key on an element, for tests of keyboard navigation."""
        self.browser.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.browser.press(key)

    def type(self, selector, words):
        self.browser.evaluate(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()")
        self.browser.type(words)

    def screenshot(self, name):
        """For people: where PAGE_SCREENSHOTS says."""
        folder = os.environ.get("PAGE_SCREENSHOTS")
        if folder:
            pathlib.Path(folder).mkdir(exist_ok=True)
            self.browser.screenshot(pathlib.Path(folder) / f"{name}.png")

    def has_sideways_scroll(self):
        return self.browser.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


@pytest.fixture
def open_page(browser):
    yield lambda gateway, look=ENGLISH: Page(browser, getattr(gateway, "port", gateway), look)
    assert browser.complaints() == []
    browser.leave()


def busy(lab, results):
    """A gateway with something of everything: traffic, a failed backend, tasks, endings, a client that waits."""
    backend = lab.backend()
    routes = [route(backend=backend.url()), route("sick", "/ws/sick", backend=f"ws://127.0.0.1:{closed_port()}/")]
    gateway, inbox = results.embedded(routes=routes)
    pairs = [lab.pair(gateway, backend) for _ in range(3)]
    client = lab.client(gateway)
    client.upgrade("/ws/sick")
    client.read_switch()
    client.read_close()
    client.half_close()
    waiter = results.wait(gateway, task := new_task())
    inbox.publish(task, text="hi")
    waiter.message()
    waiter.done()
    results.wait(gateway, new_task())
    for client, peer in pairs:
        client.say("hello")
        peer.read_frame()
    return gateway, pairs


# ---- health, for admins and for others


@pytest.mark.parametrize(
    "look, failed, since, untried, redis",
    [(ENGLISH, "failed", "since", "not tried yet", "workers publish to the gateway itself"), (CHINESE, "故障", "自", "尚未使用", "直接发布到网关")],
    ids=["en", "zh"],
)
def test_health_of_each_backend_and_of_redis(lab, results, open_page, look, failed, since, untried, redis):
    """Ok, failed with the reason and since when, or not tried yet; Redis in words."""
    url = f"ws://127.0.0.1:{closed_port()}/"
    gateway, _ = results.embedded(routes=[route(backend=url), route("new", "/ws/new", backend="ws://127.0.0.1:9/")])
    page = open_page(gateway, look)
    page.until_says("#health-list li", untried)
    client = lab.client(gateway)
    client.upgrade()
    client.read_switch()
    client.read_close()
    line = page.until_says("#health-list li", failed)
    assert url in line and "connection refused" in line and since in line
    assert page.until_says("#health-list li", redis)
    assert page.browser.console_errors() == []


@pytest.mark.parametrize(
    "look, well, sick, title",
    [(ENGLISH, "Everything works.", "does not answer at the moment", "Health"), (CHINESE, "一切正常。", "暂时没有响应", "健康状况")],
    ids=["en", "zh"],
)
def test_others_see_health_in_plain_words_and_the_form(lab, results, open_page, look, well, sick, title):
    port = closed_port()
    gateway, _ = results.embedded(config={"server": {"admin_from": ["192.0.2.1"]}}, routes=[route(backend=f"ws://127.0.0.1:{port}/")])
    page = open_page(gateway, look)
    assert page.text("#health-title") == title
    page.until_says("#health-list li", well)
    assert page.browser.evaluate("[...document.querySelectorAll('[data-admin]')].every((one) => one.hidden)")
    assert page.browser.evaluate("document.getElementById('talk-form').checkVisibility()")
    client = lab.client(gateway)
    client.upgrade()
    client.read_switch()
    client.read_close()
    assert "input" in page.until_says("#health-list li", sick)
    assert str(port) not in page.browser.evaluate("document.documentElement.outerHTML.replace(location.host, '')")
    assert page.browser.axe() == []
    assert page.browser.console_errors() == []


@pytest.mark.parametrize("look, failed, audio, log", [(ENGLISH, "failed", "Audio folder", "Log"), (CHINESE, "故障", "音频目录", "日志")], ids=["en", "zh"])
def test_what_an_operator_broke_is_named_in_one_look(lab, results, open_page, look, failed, audio, log):
    """Backend, Redis, audio folder and disk: each has a line with its reason."""
    port, redis = closed_port(), closed_port()
    output = {"audio_root": str(lab.folder / "nowhere")}
    routes = [route(backend=f"ws://127.0.0.1:{port}/"), OUTPUT]
    config = {"log": {"level": "info", "file": "/dev/full"}, "redis": {"url": f"redis://127.0.0.1:{redis}"}, "output": output, "route": routes}
    gateway = lab.gateway(config, wait=False)
    gateway.port = eventually(gateway.listening_ports, "it listens")[0]
    page = open_page(gateway, look)
    client = lab.client(gateway)
    client.upgrade()
    client.read_switch()
    client.read_close()
    for words in [[f"ws://127.0.0.1:{port}/", "connection refused"], ["Redis", f"127.0.0.1:{redis}", "refused"], [audio, "nowhere"], [log, "No space left"]]:
        page.until_says("#health-list li", failed, *words)
    assert page.browser.axe() == []
    page.screenshot(f"broken-{look['locale']}")


# ---- what it shows live


@pytest.mark.parametrize("look, opened", [(ENGLISH, "Opened since the start"), (CHINESE, "启动以来的连接")], ids=["en", "zh"])
def test_figures_and_charts_follow_what_happens(lab, results, open_page, look, opened):
    gateway, pairs = busy(lab, results)
    page = open_page(gateway, look)
    page.until("document.querySelector('[data-figure=waiting]')?.innerText === '1'")
    assert page.until_says("#figures", opened)
    assert page.text("[data-figure=completed]") == "1"
    assert " ms" in page.text("[data-figure=to_text]")
    assert page.text("[data-open=input]") == "3"
    page.until("document.querySelector('.chart b').innerText === '4'")
    client, peer = pairs[0]
    client.send(b"".join(frame(TEXT, "x" * 100, mask=b"mask") for _ in range(500)))
    peer.read(500 * 106)
    page.until("document.querySelectorAll('.chart')[1].querySelector('b').innerText !== '0'")
    labels = page.browser.evaluate("[...document.querySelectorAll('.chart svg')].map((one) => one.getAttribute('aria-label'))")
    assert len(labels) == 6 and all(labels), "a screen reader reads the numbers"
    paths = page.browser.evaluate("[...document.querySelectorAll('.chart path')].map((one) => one.getAttribute('d'))")
    assert len(paths) == 9 and all(path.startswith("M") for path in paths)


@pytest.mark.parametrize("look, code", [(ENGLISH, "code 1000"), (CHINESE, "代码 1000")], ids=["en", "zh"])
def test_endings_have_the_sentence_of_the_ledger(lab, open_page, look, code):
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    page = open_page(gateway, look)
    client, peer = lab.pair(gateway, backend)
    client.close_frame(1000)
    peer.read_close()
    peer.close_frame(1000)
    client.read_close()
    peer.half_close()
    client.half_close()
    line = page.until_says("#endings-list li", code)
    [ending] = gateway.get("/connections/closed").json()["closed"]
    assert ending["sentence"] in line and ending["id"] in line and ending["reason"] in line and ending["client"] in line
    assert page.text("#endings-note") == ""


def five_endings(lab, results):
    """A gateway at which five sockets closed: each with a word of its client, and the beginning of the reason."""
    backend = lab.backend()
    server, proxy = {"allowed_origins": ["https://app.example"]}, {"ping_interval": "1s", "ping_timeout": "1s", "max_message": "1KiB"}
    gateway, inbox = results.embedded(routes=[route(backend=backend.url())], config={"server": server, "proxy": proxy})
    port = lambda client: str(client.sock.getsockname()[1])  # noqa: E731
    ends = []
    client = lab.client(gateway)
    client.upgrade(headers=[("Origin", "https://evil.example")])
    client.read_switch()
    ends.append((port(client), client.read_close().code, "The page that connected is not in allowed_origins: https://evil.example."))
    client.half_close()
    client, peer = lab.pair(gateway, backend)
    peer.vanish()
    ends.append((port(client), client.read_close().code, "The backend closed the TCP connection without a close frame, before it had sent anything."))
    client.half_close()
    client, peer = lab.pair(gateway, backend)
    client.say("x" * 2000)
    ends.append((port(client), client.read_close().code, "The client sent a message that is larger than allowed"))
    client.half_close()
    peer.read_close()
    peer.half_close()
    waiter = results.wait(gateway, task := new_task())
    inbox.publish(task, result="no JSON")
    waiter.message()
    waiter.done()
    ends.append((task, 1000, "The worker published a result that could not be read"))
    client, peer = lab.pair(gateway, backend)
    while (got := peer.read_frame()).opcode != CLOSE:
        peer.send(frame(0xA, got.payload))
    ends.append((port(client), None, "The client did not answer a ping within ping_timeout"))
    peer.half_close()
    client.vanish()
    eventually(lambda: gateway.get("/connections/closed").json()["total_closed"] >= len(ends), "all have ended")
    return gateway, ends


@pytest.mark.parametrize("look, sent, found", [(ENGLISH, "sent to it", "1 shown"), (CHINESE, "发送给它", "显示 1 个")], ids=["en", "zh"])
def test_a_developer_finds_why_a_socket_closed(lab, results, open_page, look, sent, found):
    """With nothing but the page: by the port or the task, and by the failures among many good endings."""
    gateway, ends = five_endings(lab, results)
    page = open_page(gateway, look)
    for word, code, sentence in ends:
        line = page.until_says("#endings-list li", sentence)
        assert code is None or f" {code} " in line, line
        page.type("#endings-filter", word)
        page.until_says("#endings-list li:only-child", sentence)
        page.until_says("#endings-note", found)
        page.press("#endings-list button")
        page.until_says("#story-end", sentence)
        facts = page.text("#story-facts")
        assert word in facts and (code is None or f"{code} · {sent}" in facts), facts
        assert page.browser.axe() == []
        page.screenshot(f"why-{code}-{look['locale']}")
        page.browser.press("Escape")
        page.type("#endings-filter", " ")
        page.until("document.querySelectorAll('#endings-list li').length >= 5")
    page.browser.evaluate("document.getElementById('endings-failures').click()")
    page.until("document.querySelectorAll('#endings-list .bad').length === 5")
    assert not any("inbox_" in line for line in page.texts("#endings-list li")), "the worker's own connection ended well"


@pytest.mark.parametrize("look, of, none", [(ENGLISH, "1 of 3 shown.", "No connection matches"), (CHINESE, "共 3 个，显示 1 个。", "没有符合")], ids=["en", "zh"])
def test_table_of_connections_sorts_and_filters(lab, open_page, look, of, none):
    backend = lab.backend()
    routes = [route(backend=backend.url()), route("output", "/ws/output/{task_id}", backend=backend.url("/o/{task_id}"))]
    gateway = lab.gateway({"route": routes})
    for words in ("a", "bbb" * 100):
        client, peer = lab.pair(gateway, backend)
        client.say(words)
        peer.read_frame()
    lab.pair(gateway, backend, "/ws/output/task-7")
    page = open_page(gateway, look)
    ids = "#connections-rows td:first-child"
    page.until("document.querySelectorAll('#connections-rows tr').length === 3")
    newest_first = page.texts(ids)
    heading = "#connections-head th:nth-child(6) button"
    page.press(heading)
    assert page.browser.evaluate("document.querySelector('#connections-head th:nth-child(6)').ariaSort") == "descending"
    by_bytes = page.texts(ids)
    assert by_bytes != newest_first and set(by_bytes) == set(newest_first)
    page.press(heading)
    assert page.texts(ids) != by_bytes
    assert page.texts(ids)[-1] == by_bytes[0]
    page.type("#filter", "task-7")
    assert page.until_says("#connections-note", of)
    assert page.texts("#connections-rows td:nth-child(4)") == ["task-7"]
    page.type("#filter", "nothing like this")
    assert page.until_says("#connections-note", none)
    assert page.texts(ids) == []


@pytest.mark.parametrize("look, idle", [(ENGLISH, "Idle"), (CHINESE, "空闲")], ids=["en", "zh"])
def test_story_of_one_connection(lab, open_page, look, idle):
    """By keyboard: Enter on the id opens it, Escape closes it; it ends with the sentence of the ledger."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    page = open_page(gateway, look)
    page.until("document.querySelector('#connections-rows button')")
    page.press("#connections-rows button")
    page.until("document.getElementById('story').open")
    assert page.text("#story-title") == gateway.connections()["connections"][0]
    page.until_says("#story-facts", idle)
    page.until_says("#story-facts", backend.url())
    client.say("hello")
    peer.read_frame()
    page.until_says("#story-frames p", "client → backend text 5 B")
    peer.say("welcome!")
    client.read_frame()
    page.until_says("#story-frames p", "backend → client text 8 B")
    assert page.browser.axe() == []
    client.close_frame(1000)
    peer.read_close()
    peer.close_frame(1000)
    client.read_close()
    peer.half_close()
    client.half_close()
    [ending] = eventually(lambda: gateway.get("/connections/closed").json()["closed"], "it has ended")
    page.until_says("#story-end", ending["sentence"])
    page.browser.press("Escape")
    assert not page.browser.evaluate("document.getElementById('story').open")


# ---- the console


@pytest.mark.parametrize(
    "look, is_open, closed, binary",
    [(ENGLISH, "Open, subprotocol chat", "Closed by this page with code 1000", "binary, 5 B"), (CHINESE, "已连接，子协议 chat", "已由本页面关闭，代码 1000", "二进制，5 B")],
    ids=["en", "zh"],
)
def test_console_talks_to_any_websocket_route(lab, open_page, look, is_open, closed, binary, library_backend):
    """Connect, send text and a file, see every message, close."""
    gateway = lab.gateway(backend=library_backend.url())
    page = open_page(gateway, look)
    assert page.browser.evaluate("document.getElementById('console-path').value") == "/ws/input"
    page.type("#console-protocol", "chat.v1")
    page.press("#console-protocol")
    page.until_says("#console-state", is_open)
    page.type("#console-text", "こんにちは <b>")
    page.browser.press("Enter")
    page.until("document.querySelectorAll('#console-frames p').length === 2")
    assert [line.split(" ", 1)[1] for line in page.texts("#console-frames p")] == ["> こんにちは <b>", "< こんにちは <b>"]
    page.browser.choose("#console-file", "voice.wav", bytes(range(5)))
    page.until("document.querySelectorAll('#console-frames p').length === 4")
    sent, received = page.texts("#console-frames p")[2:]
    assert "voice.wav" in sent and binary in sent and binary in received
    assert page.browser.axe() == []
    page.press("#console-close")
    page.until_says("#console-state", closed)
    assert page.browser.evaluate("document.getElementById('console-send-text').disabled")
    assert page.browser.console_errors() == []


@pytest.mark.parametrize("look, words", [(ENGLISH, "Closed by the other side with code 4321 because"), (CHINESE, "已由对方关闭，代码 4321 because")], ids=["en", "zh"])
def test_console_shows_who_closed_and_why(lab, open_page, look, words, library_backend):
    page = open_page(lab.gateway(backend=library_backend.url()), look)
    page.press("#console-path")
    page.until("!document.getElementById('console-send-text').disabled")
    page.type("#console-text", "!close 4321 because")
    page.browser.press("Enter")
    page.until_says("#console-state", words)


@pytest.mark.parametrize("look, words", [(ENGLISH, "Not opened"), (CHINESE, "未能建立")], ids=["en", "zh"])
def test_console_says_when_nothing_was_opened(lab, open_page, look, words):
    page = open_page(lab.gateway(backend="ws://127.0.0.1:9/"), look)
    page.type("#console-path", "/nowhere")
    page.browser.press("Enter")
    page.until_says("#console-state", words)


# ---- language, contact


def test_language_switches_and_is_remembered(lab, open_page):
    """By `Accept-Language` first; the switch holds for the next visit too."""
    gateway = lab.gateway(backend="ws://127.0.0.1:9/")
    page = open_page(gateway, CHINESE)
    assert page.text("#health-title") == "健康状况"
    assert page.browser.evaluate("document.documentElement.lang") == "zh-CN"
    page.press("#language")
    assert page.text("#health-title") == "Health" and page.text("#language") == "中文"
    assert page.browser.evaluate("document.documentElement.lang") == "en"
    page.until_says("#health-list li", "not tried yet")
    page.browser.reload()
    assert page.text("#health-title") == "Health"


def test_both_languages_have_the_same_words():
    """Each phrase is in both, with the same places for values."""
    import re

    text = (pathlib.Path(__file__).parents[2] / "assets" / "words.js").read_text().partition("const REASONS")[0]
    english, chinese = (dict(re.findall(r'^    (\w+):\s+"(.*)",$', part, re.M)) for part in text.split('"zh-CN": {'))
    assert len(english) > 100 and list(english) == list(chinese)
    for key, words in english.items():
        assert sorted(re.findall(r"\{\w+\}", words)) == sorted(re.findall(r"\{\w+\}", chinese[key])), key
    used = "".join(file.read_text() for file in (pathlib.Path(__file__).parents[2] / "assets").glob("*") if file.name not in ("words.js", "client.js"))
    prefixes = ("backend_", "redis_", "plain_", "state_", "talk_", "col_", "by_", "close_")
    unused = [key for key in english if f'"{key}"' not in used and not key.startswith(prefixes) and not key.endswith("Error")]
    assert unused == ["this_page", "other_side"] or not unused, unused


def test_chinese_readers_get_each_reason_in_their_language():
    """The gateway's sentences are English; each reason has its summary."""
    import re

    root = pathlib.Path(__file__).parents[2]
    reasons = re.findall(r'^    \w+: "(\w+)", \d{4},', (root / "src" / "session" / "close.rs").read_text(), re.M)
    words = (root / "assets" / "words.js").read_text().partition("const REASONS")[2].partition("};")[0]
    assert len(reasons) > 35 and re.findall(r'^    (\w+): ".+",$', words, re.M) == reasons


@pytest.mark.parametrize("look, words", [(ENGLISH, "Contact lost at"), (CHINESE, "失去联系")], ids=["en", "zh"])
def test_lost_contact_is_shown_at_once_and_so_is_its_return(lab, open_page, look, words):
    port = closed_port()
    config = {"server": {"listen": [f"127.0.0.1:{port}"]}, "route": [route(backend="ws://127.0.0.1:9/")]}
    gateway = lab.gateway(config)
    page = open_page(gateway, look)
    page.until("document.getElementById('as-of').innerText.includes(':')")
    gateway.may_end = True
    gateway.process.kill()
    page.until_says("#lost", words)
    assert page.browser.evaluate("document.body.classList.contains('is-lost')")
    lab.gateway(config)
    page.until("document.getElementById('lost').hidden && !document.body.classList.contains('is-lost')")


def test_frozen_gateway_counts_as_lost_contact(lab, open_page):
    """Its connection stays open and says nothing."""
    import signal

    gateway = lab.gateway(backend="ws://127.0.0.1:9/")
    page = open_page(gateway)
    page.until("document.querySelector('[data-figure=waiting]')")
    gateway.signal(signal.SIGSTOP)
    try:
        page.until_says("#lost", "Contact lost")
    finally:
        gateway.signal(signal.SIGCONT)
    page.until("document.getElementById('lost').hidden")


# ---- for everyone


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("name, look", [("light", {}), ("dark", {"colorScheme": "dark"}), ("narrow", {"viewport": {"width": 375, "height": 740}})])
def test_page_is_accessible(lab, results, open_page, locale, name, look):
    """axe-core finds nothing, the browser reports no error, and 375 px need no sideways scrolling."""
    gateway, _ = busy(lab, results)
    page = open_page(gateway, {"viewport": {"width": 1280, "height": 900}, **look, "locale": locale})
    page.until("document.querySelectorAll('#connections-rows tr').length === 4 && document.querySelectorAll('#endings-list li').length > 1")
    assert page.browser.axe() == []
    assert not page.has_sideways_scroll()
    assert page.browser.console_errors() == []
    page.screenshot(f"{name}-{locale}")


def test_stranger_at_a_narrow_screen(results, open_page):
    gateway, _ = results.embedded(config={"server": {"admin_from": ["192.0.2.1"]}}, routes=[route(backend="ws://127.0.0.1:9/")])
    page = open_page(gateway, NARROW)
    page.until("document.querySelector('#health-list li')")
    assert page.browser.axe() == []
    assert not page.has_sideways_scroll()
    page.screenshot("stranger")


def test_keyboard_reaches_everything_in_order(lab, open_page):
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    lab.pair(gateway, backend)
    page = open_page(gateway)
    page.until("document.querySelector('#connections-rows button')")
    seen = []
    for _ in range(40):
        page.browser.press("Tab")
        seen.append(page.browser.evaluate("(({ activeElement: e }) => e.id || e.className || e.innerText)(document)"))
        if seen[-1] == "console-text":
            break
    assert seen[0] == "skip"
    wanted = ["language", "filter", "link", "console-path", "console-protocol", "console-connect", "console-text"]
    assert [one for one in seen if one in wanted] == wanted


def test_same_page_at_gateway(lab, browser):
    gateway = lab.gateway(backend="ws://127.0.0.1:9/")
    assert browser.goto(f"http://127.0.0.1:{gateway.port}/gateway", **ENGLISH)["status"] == 200
    assert "aivtuber-gateway" in browser.evaluate("document.title")
    assert browser.complaints() == []
    browser.leave()
