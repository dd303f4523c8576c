// Prefill and greedy decode of llama.cpp on the CPU. usage: llama_cpp.mjs FILE.gguf THREADS
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const [file, threads] = [process.argv[2], Number(process.argv[3])];
const [PROMPT, GENERATED] = [512, 64];
const llama = await getLlama({ gpu: false, maxThreads: threads, logLevel: LlamaLogLevel.error, build: "never" });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({ contextSize: 2048, batchSize: PROMPT, threads });
const prompt = Array.from({ length: PROMPT }, (_, i) => 1000 + 7 * i);
for (let repeat = 0; repeat < 2; repeat++) {
  const sequence = context.getSequence();
  let start = performance.now(), prefill = 0, count = 0;
  for await (const _ of sequence.evaluate(prompt, { temperature: 0 })) {
    if (count++ === 0) { prefill = performance.now() - start; start = performance.now(); }
    if (count > GENERATED) break;
  }
  const decode = performance.now() - start;
  const rate = (n, ms) => (n / ms * 1e3).toFixed(2);
  console.log(`llama.cpp ${file.split("/").pop()}: prefill ${PROMPT}: ${rate(PROMPT, prefill)} tok/s; decode ${rate(count - 1, decode)} tok/s`);
  sequence.dispose();
}
process.exit(0);
