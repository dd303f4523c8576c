// Greedy tokens of llama.cpp, with the two largest logits of each. usage: llama_greedy.mjs FILE.gguf THREADS < request.json
// The request has `prompts` (lists of tokens), `texts` (what they are tokens of), `max_tokens` and `stop` (tokens that end an answer).
import { readFileSync } from "node:fs";
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const [file, threads] = [process.argv[2], Number(process.argv[3])];
const { prompts, texts, max_tokens, stop } = JSON.parse(readFileSync(0, "utf8"));
const llama = await getLlama({ gpu: false, maxThreads: threads, logLevel: LlamaLogLevel.error, build: "never" });
const model = await llama.loadModel({ modelPath: file });
// Keys and values as in our server: f32.
const context = await model.createContext({
  contextSize: 1024, batchSize: 512, threads, flashAttention: false,
  experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
});
const next = { token: true, logits: { filter: { tokens: [], includeTop: 2 } }, options: { temperature: 0 } };
const sequence = context.getSequence();
const answers = [];
for (const [index, prompt] of prompts.entries()) {
  await sequence.clearHistory();
  const tokens = [], gaps = [];
  let input = [...prompt.slice(0, -1), [prompt.at(-1), { generateNext: next }]];
  while (tokens.length < max_tokens) {
    const found = (await sequence.controlledEvaluate(input)).at(-1).next;
    const [first, second] = [...found.logits.values()].sort((a, b) => b - a);
    tokens.push(found.token);
    gaps.push(first - second);
    if (stop.includes(found.token)) break;
    input = [[found.token, { generateNext: next }]];
  }
  const own = model.tokenize(texts[index], true);
  answers.push({ tokens, gaps, same_prompt: own.length === prompt.length && own.every((token, i) => token === prompt[i]) });
}
console.log(JSON.stringify(answers));
process.exit(0);
