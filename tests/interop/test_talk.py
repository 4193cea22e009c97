"""The status page's form (type, send, see the answer, hear it) in headless Chromium, and what the page does when things go wrong.

The first command of the README starts what most of these tests open. The page is driven by its keyboard alone; what it says is read
from the page as a person would.
"""

import json
import re
import threading

import pytest

from gatewaylab.cut import CuttingProxy
from gatewaylab.gateway import route
from gatewaylab.results import status
from gatewaylab.wire import TEXT, closed_port, eventually

LIGHT = {"colorScheme": "light", "viewport": {"width": 1280, "height": 900}}
DARK = {"colorScheme": "dark", "viewport": {"width": 1280, "height": 900}}
NARROW = {"colorScheme": "dark", "viewport": {"width": 360, "height": 740}}

# The status line of the form once it matches, and the sounds the page has decoded by then.
SAYS = """
(pattern) => new Promise((done) => {
  const state = document.getElementById("talk-state");
  const look = () => {
    if (!new RegExp(pattern).test(state.textContent)) return;
    watch.disconnect();
    done(state.textContent);
  };
  const watch = new MutationObserver(look);
  watch.observe(state, { childList: true, characterData: true, subtree: true });
  look();
})
"""

# Once one of the answers has these words in it.
SHOWS = """
(words) => new Promise((done) => {
  const answers = document.getElementById("talk-answers");
  const look = () => {
    if (![...answers.querySelectorAll(".answer")].some((one) => one.textContent.includes(words))) return;
    watch.disconnect();
    done();
  };
  const watch = new MutationObserver(look);
  watch.observe(answers, { childList: true, characterData: true, subtree: true });
  look();
})
"""

# The line about a sound: it is complete once `decodeAudioData` has had its say.
SOUND = """
new Promise((done) => {
  const answers = document.getElementById("talk-answers");
  const look = () => {
    const about = answers.querySelector(".about")?.textContent ?? "";
    if (!/sound/.test(about)) return;
    watch.disconnect();
    done(about);
  };
  const watch = new MutationObserver(look);
  watch.observe(answers, { childList: true, characterData: true, subtree: true });
  look();
})
"""

# How long the sound is that the page plays, by the player's own account.
PLAYER = """
new Promise((done) => {
  const audio = document.querySelector("#talk-answers audio");
  const tell = () => done({ seconds: audio.duration, controls: audio.controls, local: audio.src.startsWith("blob:") });
  audio.readyState >= 1 ? tell() : audio.addEventListener("loadedmetadata", tell);
})
"""


@pytest.fixture
def talk(browser):
    """Opens the page and sends a text by keyboard."""
    yield Talk(browser)
    browser.leave()


# The first caption, once there is one.
CAPTION = """
new Promise((done) => {
  const timer = setInterval(() => {
    const words = document.querySelector(".caption")?.textContent;
    if (!words) return;
    clearInterval(timer);
    done(words);
  }, 10);
})
"""


class Talk:
    def __init__(self, browser):
        self.browser = browser

    def open(self, port, **look):
        assert self.browser.goto(f"http://127.0.0.1:{port}/", **(look or LIGHT))["status"] == 200

    def say(self, text):
        """Moves to the field with the Tab key, wherever it is on the page, types and sends."""
        for _ in range(20):
            if self.browser.evaluate("document.activeElement.id") == "talk-text":
                break
            self.browser.press("Tab")
        else:
            raise AssertionError("the field cannot be reached by keyboard")
        self.browser.type(text)
        self.browser.press("Enter")

    def press(self, button):
        """Presses a button of the form by keyboard."""
        self.browser.evaluate(f"document.getElementById({json.dumps(button)}).focus()")
        self.browser.press("Enter")

    def ends(self, pattern="^(Done|Failed|Stopped)"):
        return self.browser.evaluate(f"({SAYS})({json.dumps(pattern)})")

    def shows(self, words):
        """Waits for an answer that contains these words."""
        self.browser.evaluate(f"({SHOWS})({json.dumps(words)})")

    @property
    def answer(self):
        return self.browser.evaluate("document.querySelector('#talk-answers .answer')?.textContent")

    def sound(self):
        """Seconds and KiB, as `decodeAudioData` and the player report them."""
        about = self.browser.evaluate(SOUND)
        found = re.match(r"(\d+\.\d) s of sound · (\d+\.\d) KiB · task [0-9a-f-]{36}$", about)
        assert found, about
        player = self.browser.evaluate(PLAYER)
        assert player["controls"] and player["local"]
        assert abs(player["seconds"] - float(found.group(1))) < 0.1
        return float(found.group(1)), float(found.group(2))


@pytest.mark.parametrize("look", [LIGHT, DARK, NARROW], ids=["light", "dark", "narrow"])
def test_type_send_see_the_answer_and_hear_it(demo, talk, tmp_path, look):
    """`demo` and a browser: type, get the answer, hear it. `decodeAudioData` decodes it, and nothing is logged as an error."""
    talk.open(demo.port, **look)
    talk.say("Hello, gateway! <b>こんにちは</b>")
    assert talk.ends().startswith("Done.")
    assert "You said: “Hello, gateway! <b>こんにちは</b>”" in talk.answer
    seconds, kibibytes = talk.sound()
    assert 4.7 < seconds < 4.9
    assert kibibytes > 128, "three chunks at the least"
    assert talk.browser.complaints() == []
    assert talk.browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out to the side"
    picture = tmp_path / "page.png"
    talk.browser.screenshot(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    print(f"screenshot: {picture}")


def test_two_questions_in_a_row(demo, talk):
    """Two texts are two tasks, the newest answer comes first, and the focus stays where the next text goes."""
    talk.open(demo.port)
    talk.say("first")
    assert talk.ends().startswith("Done.")
    talk.say("second")
    talk.shows("second")
    assert talk.ends().startswith("Done.")
    answers = talk.browser.evaluate("[...document.querySelectorAll('#talk-answers .answer')].map((one) => one.textContent)")
    assert ["second" in answers[0], "first" in answers[1], len(answers)] == [True, True, 2]
    assert talk.browser.evaluate("document.activeElement.id") == "talk-text"


def test_shift_enter_is_a_new_line_and_empty_text_is_not_sent(demo, talk):
    """Only Enter sends, and only if there is something to send."""
    talk.open(demo.port)
    talk.say("")
    talk.say("one")
    talk.ends("^Done")
    talk.browser.evaluate("document.getElementById('talk-text').value = ''")
    talk.browser.type("above")
    talk.browser.press("Shift+Enter")
    talk.say("below")
    talk.shows("below")
    assert talk.ends().startswith("Done.")
    assert "“above\nbelow”" in talk.answer


def test_audio_resumes_where_it_was_cut(demo, talk):
    """The output connection is lost in the middle of the audio: the page reconnects for the rest of it."""
    proxy = CuttingProxy(demo.port, "/ws/output/", after=100_000)
    try:
        talk.open(proxy.port)
        talk.say("Hello again")
        assert talk.ends().startswith("Done.")
        seconds, kibibytes = talk.sound()
        assert (seconds, kibibytes) == (4.8, 225.0)
        first, second = [target.partition("?")[2] for target in proxy.targets]
        assert first == ""
        assert re.fullmatch(r"from_result=0&from_byte=[1-9]\d*", second)
    finally:
        proxy.stop()


def test_why_it_failed_can_be_read(lab, talk):
    """The close code and reason of a backend that is away are shown on the page, in words."""
    routes = [route(backend=f"ws://127.0.0.1:{closed_port()}/ws/input"), route("output", "/ws/output/{task_id}", serve="output")]
    gateway = lab.gateway({"route": routes, "redis": {"url": "embedded://127.0.0.1:0"}})
    talk.open(gateway.port)
    talk.say("anybody there?")
    said = talk.ends()
    assert said.startswith("Failed: backend unavailable: connection refused (1011: the service behind")
    assert talk.answer is None
    assert talk.browser.evaluate("document.getElementById('talk-send').disabled") is False


def test_own_page_may_talk_although_origins_are_listed(lab, talk):
    """A page of the gateway's own origin is always allowed (docs/protocol.md section 3)."""
    routes = [route(backend="ws://127.0.0.1:9/"), route("output", "/ws/output/{task_id}", serve="output")]
    server = {"allowed_origins": ["https://app.example"], "server_names": ["gateway.example"]}
    gateway = lab.gateway({"server": server, "route": routes, "redis": {"url": "embedded://127.0.0.1:0"}})
    talk.open(gateway.port)
    talk.say("let me in")
    assert "1008" not in talk.ends(), "the gateway's own page needs no entry"


class Actor:
    """Another back end that speaks the same protocol: both handlers behind the gateway, played by the test."""

    TASK = "11111111-2222-4333-8444-555555555555"

    def __init__(self, lab, serves_results=False):
        self.input, self.output = lab.backend(), lab.backend()
        output = {"serve": "output"} if serves_results else {"backend": self.output.url("/ws/output/{task_id}")}
        routes = [route(backend=self.input.url()), route("results", "/ws/output/{task_id}", **output)]
        self.gateway = lab.gateway({"route": routes, "redis": {"url": "embedded://127.0.0.1:0"}})
        self.heard = []

    def play(self, scene):
        """Takes the text, then does what `scene` says with the output's connections."""
        self.scene = scene
        self.thread = threading.Thread(target=self._play, daemon=True)
        self.thread.start()

    def _play(self):
        peer = self.input.accept_upgraded()
        say(peer, {"type": "system", "action": "task_id_assigned", "task_id": self.TASK})
        while True:
            message = json.loads(peer.read_message_frame().payload)
            if message["action"] == "upload_complete":
                break
            self.heard.append((message, peer.read_message_frame().payload.decode()))
        say(peer, {"type": "system", "action": "upload_processed", "status": "queued", "task_id": self.TASK})
        self.scene(self.output)


def say(peer, message):
    peer.frame(TEXT, json.dumps(message, ensure_ascii=False))


@pytest.fixture
def actor(lab):
    actor = Actor(lab)
    yield actor
    actor.thread.join()


def test_another_back_end_that_speaks_the_same_protocol(actor, talk):
    """The page works with any back end: relayed handlers, no audio, more fields, sentence by sentence."""

    def scene(output):
        peer = output.accept_upgraded()
        about = {"status": "success", "task_id": Actor.TASK, "audio_present": False}
        say(peer, {**about, "content": "One.", "final": False})
        say(peer, {**about, "content": "<i>Two.</i>", "emotion": "<script>joy</script>"})
        peer.close_frame(1000)

    actor.play(scene)
    talk.open(actor.gateway.port)
    words = "x😀" * 3000
    talk.browser.evaluate(f"document.getElementById('talk-text').value = {json.dumps(words)}")
    talk.say("!")
    assert talk.ends().startswith("Done.")
    assert "".join(text for _, text in actor.heard) == words + "!"
    assert [about for about, _ in actor.heard] == [
        {"type": "text", "chunk_id": number, "action": "data_chunk"} for number in range(len(actor.heard))
    ]
    assert len(actor.heard) > 1, "a long text goes in pieces"
    shown = talk.browser.evaluate("[...document.querySelectorAll('#talk-answers .answer')].map((one) => one.textContent)")
    assert shown == ["One.", "<i>Two.</i>"]
    assert "<script>joy</script>" in talk.browser.evaluate("document.querySelector('#talk-answers pre').textContent")
    assert talk.browser.complaints() == []


def test_failure_of_the_worker_is_shown(actor, talk):
    """`{"status":"error","error":"..."}`: the page shows the worker's words."""

    def scene(output):
        peer = output.accept_upgraded()
        say(peer, {"status": "error", "error": "The model is asleep", "task_id": Actor.TASK})
        peer.close_frame(1000)

    actor.play(scene)
    talk.open(actor.gateway.port)
    talk.say("wake up")
    assert talk.ends() == "Failed: The model is asleep."


def test_answer_with_missing_audio(actor, talk):
    """A missing file: the text with `"audio_present":false`, then an error that names it."""

    def scene(output):
        peer = output.accept_upgraded()
        say(peer, {"status": "success", "task_id": Actor.TASK, "content": "Listen!", "audio_present": False})
        say(peer, {"status": "error", "error": "Audio file not found", "task_id": Actor.TASK})
        peer.close_frame(1000)

    actor.play(scene)
    talk.open(actor.gateway.port)
    talk.say("sing")
    assert talk.ends().startswith("Failed: Audio file not found")
    assert talk.answer == "Listen!"


def test_stop_ends_both_connections(actor, talk):
    """Stop, before the answer has come: the backend gets it."""
    left = threading.Event()

    def scene(output):
        peer = output.accept_upgraded()
        assert json.loads(peer.read_message_frame().payload) == {"type": "control", "action": "STOP"}
        peer.read_close()
        peer.close_frame(1000)
        left.set()

    actor.play(scene)
    talk.open(actor.gateway.port)
    talk.say("never mind")
    talk.ends("^Waiting")
    talk.browser.press("Tab", "Enter")
    assert talk.ends() == "Stopped."
    assert left.wait(10)
    assert talk.browser.evaluate("document.activeElement.id") == "talk-text"


def test_speak_and_hear_the_answer(demo, talk):
    """The microphone is recorded; the demo says what it received, and answers with a sound and captions."""
    talk.open(demo.port)
    talk.press("talk-speak")
    talk.ends("^Listening")
    talk.browser.evaluate("new Promise((done) => setTimeout(done, 1200))")
    talk.browser.press("Enter")
    talk.shows("I heard you: ")
    heard = re.search(r"I heard you: (\d+\.\d) seconds of WebM, (\d+\.\d) kilobytes\.", talk.answer)
    assert heard, talk.answer
    assert 0.8 < float(heard[1]) < 5 and float(heard[2]) > 1
    caption = talk.browser.evaluate(CAPTION)
    assert caption and caption in talk.answer
    assert talk.ends().startswith("Done.")
    assert talk.browser.evaluate("document.getElementById('talk-speak').textContent") == "Speak"
    assert talk.browser.complaints() == []


def test_stop_is_there_for_as_long_as_something_is_heard(demo, talk):
    """The answer is complete before it has been heard: Stop silences it."""
    talk.open(demo.port)
    talk.say("hum")
    talk.browser.evaluate(CAPTION)
    talk.press("talk-stop")
    assert talk.ends() == "Stopped."
    assert talk.browser.evaluate("document.getElementById('talk-stop').hidden")
    next_frame = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    talk.browser.evaluate(next_frame)
    assert talk.browser.evaluate("document.querySelector('.caption')") is None


def test_why_there_is_no_microphone(demo, talk):
    """Browsers give no microphone to pages that are not secure: the button is disabled, and the page says why."""
    talk.browser.goto(f"http://elsewhere.test:{demo.port}/")
    assert talk.browser.evaluate("document.getElementById('talk-speak').disabled")
    assert "needs https://" in talk.browser.evaluate("document.getElementById('talk-no-microphone').innerText")
    talk.open(demo.port)
    assert not talk.browser.evaluate("document.getElementById('talk-speak').disabled")
    assert talk.browser.evaluate("document.getElementById('talk-no-microphone').innerText") == ""


def test_stop_stops_the_task_at_the_gateway(lab, talk):
    """Stop: from then on the gateway drops what comes for the task."""
    actor = Actor(lab, serves_results=True)
    actor.play(lambda _: None)
    talk.open(actor.gateway.port)
    talk.say("never mind")
    talk.ends("^Waiting")
    eventually(lambda: status(actor.gateway, Actor.TASK)["status"] == "waiting", "the page waits")
    talk.press("talk-stop")
    assert talk.ends() == "Stopped."
    eventually(lambda: status(actor.gateway, Actor.TASK)["status"] == "stopped", "the task is stopped")
    actor.thread.join()


def test_form_is_missing_without_both_routes(lab, browser):
    """The form is there only if both of its paths have a route."""
    gateway = lab.gateway(backend="ws://127.0.0.1:9/ws/input")
    browser.goto(f"http://127.0.0.1:{gateway.port}/")
    assert browser.evaluate("document.getElementById('health-list').childElementCount") > 0
    assert browser.evaluate("document.getElementById('talk')") is None
    assert browser.complaints() == []
    browser.leave()
