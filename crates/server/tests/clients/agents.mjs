// Tools, answers with a schema, responses and embeddings by the npm package: node agents.mjs BASE MODEL KEY
// Of a server that computes vectors, the embeddings: node agents.mjs BASE MODEL KEY embeddings
// Calls and schemas are forced, so that any model passes; MAX tokens are enough for what they let through.
import assert from "node:assert/strict";
import OpenAI, { BadRequestError } from "openai";
import { zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [baseURL, model, apiKey, kind] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const MAX = 200;
const asked = { model, messages, max_tokens: MAX, temperature: 0 };
const Weather = z.object({ sky: z.enum(["clear", "cloudy"]), degrees: z.enum(["hot", "cold"]), rain: z.boolean() });
const City = z.object({ city: z.enum(["Paris", "London"]) });

async function parse() {
  const answer = await client.chat.completions.parse({ ...asked, response_format: zodResponseFormat(Weather, "weather") });
  Weather.parse(answer.choices[0].message.parsed);
  const stream = client.chat.completions.stream({ ...asked, response_format: zodResponseFormat(Weather, "weather") });
  const streamed = await stream.finalChatCompletion();
  assert.deepEqual(streamed.choices[0].message.parsed, answer.choices[0].message.parsed);
}

async function tools() {
  const tool = zodFunction({ name: "get_weather", description: "The weather of a city", parameters: City });
  const forced = { ...asked, tools: [tool], tool_choice: "required", parallel_tool_calls: false };
  const answer = await client.chat.completions.parse(forced);
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  City.parse(call.function.parsed_arguments);
  const streamed = await client.chat.completions.stream(forced).finalChatCompletion();
  assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
  // The client calls the function and sends its result back.
  let seen;
  const own = zodFunction({ name: "get_weather", parameters: City, function: ({ city }) => ((seen = city), "rain") });
  const named = { type: "function", function: { name: "get_weather" } };
  const runner = client.chat.completions.runTools({ ...asked, tools: [own], tool_choice: named }, { maxChatCompletions: 2 });
  await runner.done();
  assert.ok(["Paris", "London"].includes(seen));
  assert.equal(await runner.finalFunctionToolCallResult(), "rain");
}

async function responses() {
  const fields = { model, temperature: 0, max_output_tokens: MAX };
  const first = await client.responses.create({ ...fields, input: "Who are you?" });
  assert.ok(first.output_text);
  const second = await client.responses.create({ ...fields, input: "Why?", previous_response_id: first.id });
  assert.equal(second.previous_response_id, first.id);
  const parsed = await client.responses.parse({ ...fields, input: "The weather?", text: { format: zodTextFormat(Weather, "weather") } });
  Weather.parse(parsed.output_parsed);
  const tool = zodResponsesFunction({ name: "get_weather", parameters: City });
  const called = await client.responses.parse({ ...fields, input: "The weather?", tools: [tool], tool_choice: "required" });
  const call = called.output.find((item) => item.type === "function_call");
  City.parse(call.parsed_arguments);
  let text = "";
  for await (const event of await client.responses.create({ ...fields, input: "Who are you?", stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, first.output_text);
  await assert.rejects(client.responses.create({ ...fields, input: "x", background: true }), BadRequestError);
  await client.responses.delete(first.id);
}

async function embeddings() {
  const input = ["Paris", "The weather is nice"];
  // The package asks for base64 and decodes it, unless it is told otherwise.
  const answer = await client.embeddings.create({ model, input });
  const numbers = await client.embeddings.create({ model, input, encoding_format: "float" });
  assert.equal(answer.data.length, 2);
  answer.data[1].embedding.forEach((x, i) => assert.ok(Math.abs(x - numbers.data[1].embedding[i]) < 1e-6));
  const short = await client.embeddings.create({ model, input, dimensions: 8 });
  assert.equal(short.data[0].embedding.length, 8);
}

for (const check of kind === "embeddings" ? [embeddings] : [parse, tools, responses]) {
  await check();
  console.log(`works: ${check.name}`);
}
