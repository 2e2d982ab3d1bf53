// The server: what is asked of it, and its answers and failures in words.

const KEY = "quern.key"; // of sessionStorage: gone when the tab is closed

/** What went wrong, as a sentence; needsKey: the server wants another API key. */
export class ServerError extends Error {
  constructor(sentence, { needsKey = false } = {}) {
    super(sentence);
    this.needsKey = needsKey;
  }
}

let apiKey = "";
try {
  apiKey = sessionStorage.getItem(KEY) ?? "";
} catch {
  // a browser that keeps nothing: asked for again
}

/** Remember the API key for as long as the tab is open. */
export function keepKey(key) {
  apiKey = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // apiKey has it until the page is loaded again
  }
}

/** Return what the server says of its model. */
export async function fetchCard() {
  const response = await ask("card", {});
  try {
    return await response.json();
  } catch {
    throw new ServerError("What the server says of its model cannot be read. Reload the page.");
  }
}

/**
 * Yield an answer's pieces as they come: {text, tokens, notices, reason, sources}.
 *
 * tokens are OpenAI's logprobs; notices say what the context had no room for; reason is "stop" or
 * "length" in the last piece, which has the sources too. Throws a ServerError, or an AbortError after signal.
 */
export async function* answer(request, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true }),
    signal,
  });
  try {
    for await (const data of eventsOf(response.body)) {
      if (data === "[DONE]") return;
      yield pieceOf(data);
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
  }
  throw new ServerError("The connection was cut before the answer was whole.");
}

function pieceOf(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ServerError("The server sent something that is no answer. Is this address Quern's?");
  }
  if (chunk?.error) throw new ServerError(`The answer broke off: ${chunk.error.message}`);
  const choice = chunk?.choices?.[0];
  return {
    text: choice?.delta?.content ?? "",
    tokens: choice?.logprobs?.content ?? [],
    notices: chunk?.notices ?? [],
    reason: choice?.finish_reason ?? null,
    sources: choice?.sources ?? null,
  };
}

async function ask(path, options) {
  let response;
  try {
    const authorization = apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
    const headers = { ...options.headers, ...authorization };
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is python -m sample serve still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    // not ours: a proxy's page, or nothing at all
  }
  const { status } = response;
  if (status === 401) return new ServerError("The server wants an API key.", { needsKey: true });
  if (status === 429) return new ServerError(busy(Number(response.headers.get("Retry-After"))));
  const said = message ? `: ${message}` : `, with status ${status}.`;
  if (status >= 500) return new ServerError(`The server failed${said}`);
  return new ServerError(`The server refused${said}`);
}

function busy(seconds) {
  const wait = seconds > 0 ? `in ${seconds} second${seconds === 1 ? "" : "s"}` : "in a moment";
  return `The server is busy: others are waiting before you. Try again ${wait}.`;
}

/** Yield the data of each server-sent event of a stream of bytes, however it is cut. */
export async function* eventsOf(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return; // an event that no blank line ended is not whole
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines.map((each) => each.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection is gone already where that fails
  }
}
