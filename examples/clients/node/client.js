#!/usr/bin/env node
// A minimal pagewire client: streams a completion that outlasts its server, reads the details of an error, cancels.
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { create } from "@bufbuild/protobuf";
import grpc from "@grpc/grpc-js";
import { GenerateRequestSchema, Inference } from "./gen/pagewire/v1/inference_pb.js";
import { resuming } from "./resume.js";
import { clientOf } from "./service.js";
import { fieldViolations } from "./status.js";

const USAGE = "usage: client.js [--address HOST:PORT|unix:PATH] [--tls-ca FILE] complete TEXT | error | cancel TEXT";
const DEADLINE_MS = 60_000;
const DELTAS_BEFORE_CANCEL = 3;

/** The Generate call of a server, as a function from a request to its stream. */
function connect({ address, "tls-ca": tlsCa }, apiKey) {
  const credentials = tlsCa ? grpc.credentials.createSsl(readFileSync(tlsCa)) : grpc.credentials.createInsecure();
  const client = new (clientOf(Inference))(address, credentials);
  const metadata = new grpc.Metadata();
  if (apiKey) metadata.set("authorization", `Bearer ${apiKey}`);
  return (request) =>
    client.generate(create(GenerateRequestSchema, request), metadata, { deadline: Date.now() + DEADLINE_MS });
}

const prompted = (text, samplingParams) => ({
  prompt: { case: "text", value: text },
  decoding: { case: "samplingParams", value: samplingParams },
});

async function complete(generate, text) {
  for await (const event of resuming(generate, prompted(text, { temperature: 0, maxTokens: 64 }))) {
    if (event.case === "delta") {
      process.stdout.write(event.value.text);
    } else if (event.case === "finished") {
      const { promptTokens, completionTokens, cachedTokens } = event.value.usage;
      process.stdout.write("\n");
      console.error(`tokens: ${promptTokens} prompt, ${completionTokens} completion, ${cachedTokens} cached`);
    }
  }
}

async function error(generate) {
  try {
    for await (const _ of generate(prompted("Hello", { temperature: 9, maxTokens: 0 })));
  } catch (refusal) {
    const violations = fieldViolations(refusal);
    if (violations.length === 0) throw refusal;
    console.error(grpc.status[refusal.code]);
    for (const { field, description } of violations) console.log(`${field}: ${description}`);
    return;
  }
  throw new Error("an invalid request was not refused");
}

async function cancel(generate, text) {
  const call = generate(prompted(text, { maxTokens: 1_000_000, ignoreEos: true }));
  let deltas = 0;
  try {
    for await (const { event } of call) {
      if (event.case !== "delta") continue;
      process.stdout.write(event.value.text);
      if (++deltas === DELTAS_BEFORE_CANCEL) call.cancel();
    }
  } catch (ended) {
    if (ended.code !== grpc.status.CANCELLED) throw ended;
    process.stdout.write("\n");
    console.error("CANCELLED");
    return;
  }
  throw new Error("the stream ended before it was cancelled");
}

const COMMANDS = { complete, error, cancel };

class WrongUsage extends Error {}

function parseCommandLine() {
  const options = { address: { type: "string", default: "localhost:50051" }, "tls-ca": { type: "string" } };
  try {
    const { values, positionals } = parseArgs({ options, allowPositionals: true });
    const [name, ...texts] = positionals;
    if (COMMANDS[name].length === 1 + texts.length) return { values, command: COMMANDS[name], texts };
  } catch {
    // An unknown option or command.
  }
  throw new WrongUsage(USAGE);
}

async function main() {
  const { values, command, texts } = parseCommandLine();
  await command(connect(values, process.env.PAGEWIRE_API_KEY), ...texts);
}

main().catch((failed) => {
  console.error(failed.code in grpc.status ? `${grpc.status[failed.code]}: ${failed.details}` : failed.message);
  process.exitCode = failed instanceof WrongUsage ? 2 : 1;
});
