// What run.py runs of the npm package: node openai.mjs BASE MODEL KEY
import assert from "node:assert/strict";
import OpenAI, { NotFoundError } from "openai";

const [baseURL, model, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const messages = [{ role: "user", content: "What is your name?" }];
const asked = { model, messages, max_tokens: 16, temperature: 0 };

const whole = await client.chat.completions.create(asked);
const text = whole.choices[0].message.content;
assert.ok(text && whole.usage.completion_tokens > 0);

let streamed = "";
let usage;
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

const runner = client.chat.completions.stream(asked);
assert.equal((await runner.finalMessage()).content, text);

const completion = await client.completions.create({ model, prompt: "Once upon a time", max_tokens: 8 });
assert.ok(completion.choices[0].text);

await assert.rejects(client.chat.completions.create({ ...asked, model: "no-such-model" }), NotFoundError);
for await (const listed of client.models.list()) assert.equal(typeof listed.id, "string");
