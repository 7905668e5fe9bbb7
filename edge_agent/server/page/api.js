// The daemon's JSON over HTTP, and its errors in words.

export class ApiError extends Error {}

export async function get(path) {
  return answered(await fetch(path));
}

export async function send(method, path, body) {
  const json = { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return answered(await fetch(path, { method, ...(body === undefined ? {} : json) }));
}

async function answered(response) {
  if (!response.ok) throw new ApiError(await problem(response));
  return response.json();
}

// What failed, why, what to do: the three parts every error of the daemon has.
export async function problem(response) {
  if (response.status === 401) return "The session has ended. Ask for a new link: edge-agent dashboard";
  try {
    const { error } = await response.json();
    return typeof error === "string" ? error : [error.message, error.hint].filter(Boolean).join(" – ");
  } catch {
    return `The daemon answered with status ${response.status}.`;
  }
}

export function told(error) {
  return error instanceof ApiError ? error.message : "The daemon does not answer.";
}

export function node(name, text, kind) {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
