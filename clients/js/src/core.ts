/**
 * A client for aivtuber-gateway without playback and recording, for programs that do these
 * themselves.
 *
 * @module
 */
export { Answer, type State } from "./answer.js";
export {
  AnswerError,
  ConnectionError,
  GatewayError,
  RefusedError,
  TimeoutError,
  meaning,
} from "./errors.js";
export { type AskOptions, Gateway, type GatewayOptions } from "./gateway.js";
export type { ChunkMessage, Part, ResultMessage } from "./messages.js";
export { type Input, type Upload, type UploadContext, upload } from "./upload.js";
