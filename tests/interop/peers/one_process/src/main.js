// Uses everything that one gateway serves, and leaves a report in `window.report`.
import { Gateway } from "/client.js";

const task = location.pathname.split("/").pop();

function hexadecimal(buffer) {
  return Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function upload() {
  const body = Uint8Array.from({ length: 2 * 1024 * 1024 }, (_, at) => at % 251);
  const sent = hexadecimal(await crypto.subtle.digest("SHA-256", body));
  const seen = await (await fetch("/api/echo?from=page", { method: "POST", body })).json();
  return { method: seen.method, target: seen.target, length: seen.length, isSame: seen.sha256 === sent };
}

// The backend sends the second event when it gets another request, which is made once the first has come.
function events() {
  return new Promise((done, fail) => {
    const seen = [];
    const source = new EventSource("/api/events");
    source.onerror = () => fail(new Error("the event stream failed"));
    source.onmessage = async ({ data }) => {
      seen.push(data);
      if (seen.length === 1) {
        await fetch("/api/more", { method: "POST" });
      } else {
        source.close();
        done(seen);
      }
    };
  });
}

// Without credentials the browser does not ask for a password.
async function denied() {
  const response = await fetch("/api/private", { credentials: "omit" });
  return { status: response.status, scheme: response.headers.get("WWW-Authenticate"), body: await response.text() };
}

function input() {
  return new Promise((done, fail) => {
    const socket = new WebSocket(`wss://${location.host}/ws/input`);
    socket.onopen = () => socket.send("hello");
    socket.onerror = () => fail(new Error("/ws/input failed"));
    socket.onmessage = ({ data }) => {
      socket.close(1000);
      done(data);
    };
  });
}

async function output() {
  const answer = new Gateway().listen(task);
  const audio = await answer.blob();
  const sha256 = hexadecimal(await crypto.subtle.digest("SHA-256", await audio.arrayBuffer()));
  return { text: await answer.text, bytes: audio.size, sha256, state: answer.state };
}

async function report() {
  const [uploaded, streamed, refused, heard, answered] = await Promise.all([
    upload(),
    events(),
    denied(),
    input(),
    output(),
  ]);
  return { isSecureContext, origin: location.origin, uploaded, streamed, refused, heard, answered };
}

window.report = report();
