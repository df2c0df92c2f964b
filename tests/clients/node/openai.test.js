// OpenAI's client for JavaScript against a server of the bundled model: node --test openai.test.js, with the addresses
// of the server and of its metrics, of a server that wants a key, and that key, in the environment.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const { PAGEWIRE_URL, PAGEWIRE_METRICS_URL, PAGEWIRE_KEYED_URL, PAGEWIRE_KEY } = process.env;
const client = new OpenAI({ baseURL: `${PAGEWIRE_URL}/v1`, apiKey: "none", maxRetries: 0 });
const keyed = new OpenAI({ baseURL: `${PAGEWIRE_KEYED_URL}/v1`, apiKey: PAGEWIRE_KEY, maxRetries: 0 });

const question = "How many months are in a year?";
const answer = "There are twelve months in a year.";
const ask = { model: "demo", messages: [{ role: "user", content: question }], temperature: 0 };
const respond = { model: "demo", input: question, temperature: 0 };
const parameters = {
  type: "object",
  properties: { city: { enum: ["Rome", "Oslo"] } },
  required: ["city"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "weather", parameters } };
const named = { type: "function", function: { name: "weather" } };

async function metric(name) {
  const page = await (await fetch(PAGEWIRE_METRICS_URL)).text();
  const line = page.split("\n").find((line) => line.startsWith(`${name} `));
  return Number(line.slice(name.length));
}

async function eventually(condition, what) {
  for (let attempt = 0; attempt < 300; attempt++) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.fail(`not within 30 s: ${what}`);
}

test("the routes and their streams say the same", async () => {
  assert.deepEqual((await client.models.list()).data.map((model) => model.id), ["demo"]);
  const prompt = `<|user|>${question}<|end|><|assistant|>`;
  const text = await client.completions.create({ model: "demo", prompt, temperature: 0, max_tokens: 40 });
  assert.equal(text.choices[0].text, answer);
  const chat = await client.chat.completions.create(ask);
  assert.equal(chat.choices[0].message.content, answer);
  let told = "";
  for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
    told += chunk.choices[0].delta.content ?? "";
  }
  assert.equal(told, answer);
  const response = await client.responses.create(respond);
  assert.equal(response.output_text, answer);
  assert.equal(response.usage.output_tokens, chat.usage.completion_tokens);
});

test("the helpers for streams accumulate the answer", async () => {
  const chat = client.chat.completions.stream({ ...ask, stream_options: { include_usage: true } });
  let told = "";
  chat.on("content", (delta) => (told += delta));
  assert.equal(await chat.finalContent(), answer);
  assert.equal(told, answer);
  assert.ok((await chat.totalUsage()).completion_tokens > 5);
  const response = await client.responses.stream(respond).finalResponse();
  assert.equal(response.output_text, answer);
});

test("several answers have log-probabilities", async () => {
  const fields = { ...ask, temperature: 1, n: 2, max_tokens: 6, logprobs: true, top_logprobs: 2 };
  const { choices, usage } = await client.chat.completions.create(fields);
  assert.equal(choices.length, 2);
  const entries = choices.flatMap((choice) => choice.logprobs.content);
  assert.equal(entries.length, usage.completion_tokens);
  assert.ok(entries.every((entry) => entry.top_logprobs.length === 2));
});

for (const [name, server] of Object.entries({ "as JSON": client, "in the format of Hermes": keyed })) {
  test(`calls that must be made are made ${name}`, async () => {
    for (const tool_choice of ["required", named]) {
      const fields = { ...ask, tools: [tool], tool_choice, parallel_tool_calls: false };
      const stream = server.chat.completions.stream(fields);
      const done = [];
      stream.on("tool_calls.function.arguments.done", (call) => done.push(call.name));
      const streamed = (await stream.finalChatCompletion()).choices[0];
      assert.deepEqual(done, ["weather"]);
      const whole = (await server.chat.completions.create(fields)).choices[0];
      for (const { message, finish_reason } of [whole, streamed]) {
        assert.equal(finish_reason, "tool_calls");
        assert.ok(["Rome", "Oslo"].includes(JSON.parse(message.tool_calls[0].function.arguments).city));
      }
    }
  });
}

test("tools are run and their results are answered", async () => {
  const cities = [];
  const weather = {
    type: "function",
    function: { name: "weather", parameters, parse: JSON.parse, function: ({ city }) => `${cities.push(city)} degrees` },
  };
  const runner = client.chat.completions.runTools({ ...ask, tools: [weather], tool_choice: named });
  await runner.done();
  assert.equal(cities.length, 1);
  assert.equal(runner.messages.find((message) => message.role === "tool").content, "1 degrees");
  const streaming = client.chat.completions.runTools(
    { ...ask, tools: [weather], tool_choice: "auto", stream: true },
    { maxChatCompletions: 2 },
  );
  assert.equal(await streaming.finalContent(), answer);
});

test("errors have the classes that programs expect", async () => {
  await assert.rejects(client.chat.completions.create({ ...ask, temperature: 9 }), (error) => {
    return error instanceof OpenAI.BadRequestError && error.param === "temperature";
  });
  await assert.rejects(client.responses.create({ ...respond, model: "gpt-5" }), OpenAI.NotFoundError);
  await assert.rejects(client.embeddings.create({ model: "demo", input: "a" }), /v1\/embeddings/);
  const stranger = keyed.withOptions({ apiKey: "another" });
  await assert.rejects(stranger.chat.completions.create(ask), OpenAI.AuthenticationError);
  await assert.rejects(keyed.completions.create({ model: "demo", prompt: "a".repeat(200_000) }), { status: 413 });
});

test("a request that is aborted ends on the server", async () => {
  const aborted = 'pagewire_sequences_finished_total{reason="abort"}';
  const before = await metric(aborted);
  const stream = await client.completions.create({
    model: "demo",
    prompt: "Once",
    max_tokens: 2000,
    ignore_eos: true,
    stream: true,
  });
  for await (const chunk of stream) {
    assert.ok(chunk.choices);
    stream.controller.abort();
    break;
  }
  await eventually(async () => (await metric(aborted)) === before + 1, "the sequence is aborted");
  await eventually(async () => (await metric("pagewire_requests_running")) === 0, "nothing runs");
});
