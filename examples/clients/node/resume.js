// Streams a request, and resumes it where it was when its server or the connection is lost.
import { setTimeout as sleep } from "node:timers/promises";
import grpc from "@grpc/grpc-js";

const MAX_FRUITLESS = 8; // attempts in a row that bring nothing

/** The events of a request, each once; `generate` makes one attempt. Log-probabilities are not counted here. */
export async function* resuming(generate, request) {
  const sequences = new Map();
  let started;
  for (let fruitless = 0; ; fruitless++) {
    const { modelDigest, promptDigest, seed } = started ?? {};
    const resume = started && { modelDigest, promptDigest, seed, sequences: [...sequences.values()] };
    try {
      for await (const { event } of generate({ ...request, resume, resumes: true })) {
        if (event.case === "started") {
          if (started) continue; // A resumed stream begins with it again.
          started = event.value;
        } else {
          fruitless = 0;
          note(sequences, event);
        }
        yield event;
      }
      return;
    } catch (lost) {
      if (lost.code !== grpc.status.UNAVAILABLE || !started || fruitless === MAX_FRUITLESS) throw lost;
    }
    await sleep(Math.random() * Math.min(1000, 50 * 2 ** fruitless));
  }
}

function note(sequences, { case: kind, value }) {
  const { index } = value;
  const received = sequences.get(index) ?? { index, tokenIds: [], textBytesReceived: 0n, finished: false };
  sequences.set(index, received);
  if (kind === "finished") received.finished = true;
  if (kind !== "delta") return;
  received.tokenIds.push(...value.tokenIds);
  received.textBytesReceived += BigInt(Buffer.byteLength(value.text));
}
