// A React hook around the client library: copy it into your project.
import { Gateway, type Answer, type State } from "aivtuber-gateway-client";
import { useCallback, useEffect, useRef, useState } from "react";

/** Asks the character behind `url` (by default the page's server) and speaks its answer. */
export function useAnswer(url?: string) {
  const [text, setText] = useState("");
  const [state, setState] = useState<State | "idle">("idle");
  const [error, setError] = useState<string>();
  const current = useRef<Answer>(undefined);

  const stop = useCallback(() => current.current?.stop(), []);

  const ask = useCallback(
    async (question: string | Blob | MediaStream) => {
      stop();
      setText("");
      setError(undefined);
      const answer = new Gateway(url ? { url } : {}).ask(question);
      current.current = answer;
      answer.addEventListener("state", () => current.current === answer && setState(answer.state));
      answer.play();
      try {
        for await (const part of answer) {
          if (part.type === "text") setText((text) => (text ? `${text}\n` : "") + part.content);
        }
      } catch (problem) {
        if (current.current === answer) setError((problem as Error).message);
      }
    },
    [url, stop],
  );

  useEffect(() => stop, [stop]); // silence when the component goes away
  return { ask, stop, text, state, error, level: () => current.current?.level ?? 0 };
}
