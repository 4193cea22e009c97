// A Vue composable around the client library: copy it into your project.
import { Gateway, type Answer, type State } from "aivtuber-gateway-client";
import { onScopeDispose, ref } from "vue";

/** Asks the character behind `url` (by default the page's server) and speaks its answer. */
export function useAnswer(url?: string) {
  const text = ref("");
  const state = ref<State | "idle">("idle");
  const error = ref<string>();
  let current: Answer | undefined;

  const stop = () => current?.stop();

  async function ask(question: string | Blob | MediaStream) {
    stop();
    text.value = "";
    error.value = undefined;
    const answer = (current = new Gateway(url ? { url } : {}).ask(question));
    answer.addEventListener("state", () => {
      if (current === answer) state.value = answer.state;
    });
    answer.play();
    try {
      for await (const part of answer) {
        if (part.type === "text") text.value += (text.value && "\n") + part.content;
      }
    } catch (problem) {
      if (current === answer) error.value = (problem as Error).message;
    }
  }

  onScopeDispose(stop); // silence when the component goes away
  return { ask, stop, text, state, error, level: () => current?.level ?? 0 };
}
