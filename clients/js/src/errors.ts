/**
 * What the close codes mean, in words for people. Codes that are not listed are shown as they are.
 */
const MEANINGS: Record<number, string> = {
  1001: "the other side went away",
  1002: "protocol error",
  1006: "no gateway there, or the connection was lost",
  1007: "a text was not valid UTF-8",
  1008: "the address of this page is not in allowed_origins",
  1009: "the message is too big",
  1011: "the service behind the gateway is not available",
  1012: "the gateway is restarting: try again in a moment",
  1013: "overloaded, or Redis is not available: try again later",
  4004: "the task id is not valid",
  4008: "the service behind the gateway did not answer in time",
};

/**
 * Codes after which the connection is worth another try: something was lost, nothing was refused.
 */
const TRANSIENT = [1001, 1006, 1011, 1012, 1013];

/** Whether a connection that closed with `code` may succeed when it is opened again. */
export const isTransient = (code: number): boolean => TRANSIENT.includes(code);

/** The meaning of a close `code` in words. */
export const meaning = (code: number): string => MEANINGS[code] ?? `close code ${code}`;

/** Why an answer failed. All errors of this library are of this class or one of its subclasses. */
export class GatewayError extends Error {
  override name = "GatewayError";
  constructor(
    message: string,
    /** The WebSocket close code, where a close was the reason. */
    readonly code?: number,
  ) {
    super(message);
  }
}

/** The worker reported that it failed; the message is the worker's own. */
export class AnswerError extends GatewayError {
  override name = "AnswerError";
}

/** The connection was lost or could not be made, and trying again did not help. */
export class ConnectionError extends GatewayError {
  override name = "ConnectionError";
}

/** The gateway refused the request; trying again would not help. */
export class RefusedError extends GatewayError {
  override name = "RefusedError";
}

/** No answer came in time. */
export class TimeoutError extends GatewayError {
  override name = "TimeoutError";
}

/** The error for a connection that closed with `code`; `reason` is what the other side said. */
export function closeError(code: number, reason: string): GatewayError {
  const Class =
    code === 4008
      ? TimeoutError
      : isTransient(code) || code === 1000
        ? ConnectionError
        : RefusedError;
  const words = code === 1000 ? "the connection was closed without an answer" : meaning(code);
  return new Class(reason ? `${reason} (${code}: ${words})` : `${words} (${code})`, code);
}
