/** A result's text message. Fields that the worker added are passed through unchanged. */
export interface ResultMessage {
  status: string;
  task_id: string;
  content: string;
  audio_present: boolean;
  /** `false`: more results of the task follow. */
  final?: boolean;
  /** The result's number within its task, from gateways that number them. */
  result_id?: number;
  /** For example `audio/wav`, from gateways that name it. */
  audio_type?: string;
  [field: string]: unknown;
}

/** The text message before a piece of audio. */
export interface ChunkMessage {
  type: "audio_chunk";
  task_id: string;
  chunk_id: number;
  /** `null` while the audio still grows. */
  total_chunks: number | null;
  /** Bytes of this audio before the piece. */
  offset?: number;
  [field: string]: unknown;
}

/**
 * One piece of an answer, in the order in which it was made. `index` counts the answer's results
 * from 0.
 */
export type Part =
  | { type: "text"; index: number; content: string; message: ResultMessage }
  | {
      type: "audio";
      index: number;
      bytes: Uint8Array<ArrayBuffer>;
      offset: number;
      message: ChunkMessage;
    }
  | { type: "audio_end"; index: number }
  | { type: "progress"; message: Record<string, unknown> }
  | { type: "error"; error: string; message: Record<string, unknown> };

/** Parses a JSON object; anything else gives an empty one, because it was not meant for us. */
export function parse(data: string): Record<string, any> {
  try {
    const value: unknown = JSON.parse(data);
    return value !== null && typeof value === "object" ? value : {};
  } catch {
    return {};
  }
}
