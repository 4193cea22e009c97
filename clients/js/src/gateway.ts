import { Answer, type OpenOutput } from "./answer.js";
import { GatewayError } from "./errors.js";
import { type Input, type Upload, upload } from "./upload.js";

/** Where the gateway is and how to speak to it. Everything is optional. */
export interface GatewayOptions {
  /**
   * The gateway's address, such as `http://localhost:8000`. By default the gateway that served this
   * library as `/client.js`; in a bundle, the server of the page.
   */
  url?: string | URL;
  /** How a question reaches the back end. */
  upload?: Upload;
  /** A WebSocket class, where the platform has none. */
  WebSocket?: typeof WebSocket;
}

/** Options of one question. */
export interface AskOptions {
  /** Stops the answer when it is aborted. */
  signal?: AbortSignal;
}

/** A gateway: ask it something, or listen for the results of a task that is already under way. */
export class Gateway<Kind extends Answer = Answer> {
  /** The gateway's address; paths are relative to it. */
  readonly url: URL;
  readonly #upload: Upload;
  readonly #WebSocket: typeof WebSocket | undefined;
  /** The class of the answers. */
  protected Answer = Answer as unknown as new (open: OpenOutput) => Kind;

  constructor(options: GatewayOptions | string | URL = {}) {
    if (typeof options === "string" || options instanceof URL) options = { url: options };
    this.url = new URL(options.url ?? defaultUrl());
    if (!this.url.pathname.endsWith("/")) this.url.pathname += "/";
    this.#upload = options.upload ?? upload;
    this.#WebSocket = options.WebSocket;
  }

  /** Sends `input` to the back end and gives the answer, which fills as it is made. */
  ask(input: Input, { signal }: AskOptions = {}): Kind {
    const answer = this.#answer(signal);
    const context = {
      open: (path: string) => this.open(path),
      begin: (taskId: string) => answer.listen(taskId),
      signal: answer.signal,
    };
    // A call that throws, such as a bad address, fails the answer like everything else.
    new Promise<void>((resolve) => resolve(this.#upload(input, context))).then(
      () => answer.state === "uploading" && answer.become("waiting"),
      (error: unknown) => {
        const isOurs = error instanceof GatewayError;
        answer.finish("failed", isOurs ? error : new GatewayError(String(error)));
      },
    );
    return answer;
  }

  /** Listens for the results of a task whose id is known. */
  listen(taskId: string, { signal }: AskOptions = {}): Kind {
    const answer = this.#answer(signal);
    answer.listen(taskId);
    answer.become("waiting");
    return answer;
  }

  /** Opens a WebSocket on `path` below the gateway's address. */
  open(path: string): WebSocket {
    const url = new URL(path, this.url);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new (this.#WebSocket ?? WebSocket)(url);
    socket.onerror = () => {}; // a close follows, and has the code
    return socket;
  }

  #answer(signal: AbortSignal | undefined): Kind {
    const answer = new this.Answer((taskId, query) =>
      this.open(`ws/output/${encodeURIComponent(taskId)}${query}`),
    );
    if (signal?.aborted) answer.stop();
    signal?.addEventListener("abort", () => answer.stop(), { signal: answer.signal });
    return answer;
  }
}

/** Whether this is the file that gateways serve, and not the npm package. Set by build.js. */
declare const IS_SERVED: boolean;

function defaultUrl(): string | URL {
  // Not `new URL(…, import.meta.url)` in one expression: bundlers take that for a file to include.
  const here = import.meta.url;
  // A bundle, too, may be called client.js.
  if (IS_SERVED && /^https?:[^?#]*\/client\.js/.test(here)) return new URL(".", here);
  if (typeof location === "undefined") throw new TypeError("the gateway's url is needed here");
  return location.origin;
}
