// What one real Node client does with a server; the checks are those of client_cases.py, which says why.
// benchmarks/clients.py copies this file into the directory whose node_modules has the clients.

import { readFileSync } from "node:fs";

const { BASE_URL, TOKEN, MODEL } = process.env;
const LIMIT = 48;
const QUESTION = "Name the capital of France and guess how many people live there.";
const MESSAGES = [{ role: "user", content: QUESTION }];
const HISTORY = [
  { role: "system", content: "You are brief." },
  { role: "user", content: "My name is Asha." },
  { role: "assistant", content: "Hello Asha." },
  { role: "user", content: "What is my name?" },
];
const headers = { Authorization: `Bearer ${TOKEN}` };

function isText(text) {
  if (typeof text !== "string" || !text.trim()) throw new Error(`no text came: ${JSON.stringify(text)}`);
}

async function isStream(parts) {
  const texts = [];
  for await (const part of parts) if (part) texts.push(part);
  if (texts.length < 2) throw new Error(`not a stream: ${JSON.stringify(texts)}`);
  isText(texts.join(""));
}

function isCity(value) {
  const found = typeof value === "string" ? JSON.parse(value) : value;
  if (typeof found.city !== "string" || !Number.isInteger(found.people))
    throw new Error(`not of the schema: ${JSON.stringify(found)}`);
}

function lists(names) {
  const found = names.map((name) => name.replace(/:latest$/, ""));
  if (!found.includes(MODEL)) throw new Error(`${MODEL} is not in ${found}`);
}

async function city() {
  const { z } = await import("zod");
  return z.object({ city: z.string().max(20), people: z.int() });
}

async function visit() {
  const { z } = await import("zod");
  const kind = z.enum(["first", "again"]);
  return z.object({ id: z.uuid(), day: z.iso.date(), kind, paid: z.boolean().nullable() });
}

async function* picked(parts, pick) {
  for await (const part of parts) yield pick(part);
}

async function openai() {
  const { default: OpenAI } = await import("openai");
  const { zodResponseFormat } = await import("openai/helpers/zod");
  const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: TOKEN, maxRetries: 0 });
  const schema = zodResponseFormat(await city(), "city");
  const ask = (messages, more) =>
    client.chat.completions.create({ model: MODEL, messages, max_tokens: LIMIT, ...more });
  return {
    chat: async () => isText((await ask(MESSAGES)).choices[0].message.content),
    history: async () => isText((await ask(HISTORY)).choices[0].message.content),
    stream: async () =>
      isStream(picked(await ask(MESSAGES, { stream: true }), (part) => part.choices[0]?.delta.content)),
    structured: async () =>
      isCity((await ask(MESSAGES, { response_format: schema })).choices[0].message.content),
    list: async () => lists((await client.models.list()).data.map((model) => model.id)),
  };
}

async function ollama() {
  const { Ollama } = await import("ollama");
  const { z } = await import("zod");
  const client = new Ollama({ host: BASE_URL, headers });
  const schema = z.toJSONSchema(await city());
  const ask = (messages, more) =>
    client.chat({ model: MODEL, messages, options: { num_predict: LIMIT }, ...more });
  return {
    chat: async () => isText((await ask(MESSAGES)).message.content),
    history: async () => isText((await ask(HISTORY)).message.content),
    stream: async () =>
      isStream(picked(await ask(MESSAGES, { stream: true }), (part) => part.message.content)),
    structured: async () => isCity((await ask(MESSAGES, { format: schema })).message.content),
    list: async () => lists((await client.list()).models.map((model) => model.name)),
    pull: async () => {
      const done = await client.pull({ model: "embedded:smollm2-135m" });
      if (done.status !== "success") throw new Error(JSON.stringify(done));
    },
  };
}

async function vercel(model) {
  const { generateText, streamText, generateObject } = await import("ai");
  const common = { model, maxOutputTokens: LIMIT, maxRetries: 0 };
  const system = HISTORY[0].content;
  return {
    chat: async () => isText((await generateText({ ...common, prompt: QUESTION })).text),
    history: async () =>
      isText((await generateText({ ...common, system, messages: HISTORY.slice(1) })).text),
    stream: async () => isStream(streamText({ ...common, prompt: QUESTION }).textStream),
    structured: async () =>
      isCity((await generateObject({ ...common, schema: await city(), prompt: QUESTION })).object),
    formats: async () => {
      const wanted = { ...common, maxOutputTokens: 160, schema: await visit(), prompt: QUESTION };
      isText((await generateObject(wanted)).object.id);
    },
  };
}

async function vercelCompatible() {
  const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
  const options = { name: "edge", baseURL: `${BASE_URL}/v1`, apiKey: TOKEN };
  return vercel(createOpenAICompatible({ ...options, supportsStructuredOutputs: true })(MODEL));
}

async function vercelOpenai() {
  const { createOpenAI } = await import("@ai-sdk/openai");
  return vercel(createOpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: TOKEN }).chat(MODEL));
}

async function vercelOllama() {
  const { createOllama } = await import("ai-sdk-ollama");
  return vercel(createOllama({ baseURL: BASE_URL, headers })(MODEL));
}

async function langchain(model) {
  const turns = HISTORY.map((message) => [message.role, message.content]);
  const typed = model.withStructuredOutput(await city(), { method: "jsonSchema" });
  return {
    chat: async () => isText((await model.invoke(QUESTION)).content),
    history: async () => isText((await model.invoke(turns)).content),
    stream: async () => isStream(picked(await model.stream(QUESTION), (part) => part.content)),
    structured: async () => isCity(await typed.invoke(QUESTION)),
  };
}

async function langchainOpenai() {
  const { ChatOpenAI } = await import("@langchain/openai");
  const configuration = { baseURL: `${BASE_URL}/v1` };
  return langchain(
    new ChatOpenAI({ model: MODEL, apiKey: TOKEN, maxTokens: LIMIT, maxRetries: 0, configuration }),
  );
}

async function langchainOllama() {
  const { ChatOllama } = await import("@langchain/ollama");
  return langchain(
    new ChatOllama({ model: MODEL, baseUrl: BASE_URL, headers, numPredict: LIMIT, maxRetries: 0 }),
  );
}

const CLIENTS = {
  "openai (Node)": ["openai", openai],
  "ollama (Node)": ["ollama", ollama],
  "Vercel openai-compatible": ["@ai-sdk/openai-compatible", vercelCompatible],
  "Vercel openai.chat": ["@ai-sdk/openai", vercelOpenai],
  "Vercel ollama": ["ai-sdk-ollama", vercelOllama],
  "langchain-openai (Node)": ["@langchain/openai", langchainOpenai],
  "langchain-ollama (Node)": ["@langchain/ollama", langchainOllama],
};

function say(document) {
  console.log(JSON.stringify(document));
}

async function main(name) {
  const [packageName, make] = CLIENTS[name];
  let checks;
  try {
    checks = await make();
  } catch (error) {
    say({ missing: String(error) });
    return;
  }
  say({ version: JSON.parse(readFileSync(`node_modules/${packageName}/package.json`)).version });
  for (const [check, run] of Object.entries(checks)) {
    let outcome = "ok";
    try {
      await run();
    } catch (error) {
      outcome = `${error.name}: ${error.message} ${error.responseBody ?? ""}`.replaceAll(/\s+/g, " ").slice(0, 400);
    }
    say({ check, outcome });
  }
}

await main(process.argv[2]);
process.exit(0);
