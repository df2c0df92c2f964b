// Traces a program's gRPC calls, by OpenTelemetry, as the OTEL_* variables say. Loaded before it:
//   node --import ./tracing/tracing.js client.js ...
import { createRequire } from "node:module";
import { GrpcInstrumentation } from "@opentelemetry/instrumentation-grpc";
import { NodeSDK } from "@opentelemetry/sdk-node";

const sdk = new NodeSDK({ instrumentations: [new GrpcInstrumentation()] });
sdk.start();
process.once("beforeExit", () => sdk.shutdown());

// The instrumentation changes the library where it is required. The program imports it, and gets the same, changed one.
createRequire(process.argv[1])("@grpc/grpc-js");
