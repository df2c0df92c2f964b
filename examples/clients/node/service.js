// Joins generated code and transport: a grpc-js client class for a service that protoc-gen-es described.
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import grpc from "@grpc/grpc-js";

/** The client class of a service. Its methods are named as in generated code: Generate is `generate`. */
export function clientOf(service) {
  const methods = service.methods.map((method) => [method.localName, definitionOf(service, method)]);
  return grpc.makeGenericClientConstructor(Object.fromEntries(methods), service.typeName);
}

function definitionOf(service, { name, methodKind, input, output }) {
  const bytesOf = (schema) => (message) => Buffer.from(toBinary(schema, message));
  const messageOf = (schema) => (bytes) => fromBinary(schema, bytes);
  return {
    path: `/${service.typeName}/${name}`,
    requestStream: methodKind === "client_streaming" || methodKind === "bidi_streaming",
    responseStream: methodKind === "server_streaming" || methodKind === "bidi_streaming",
    requestSerialize: bytesOf(input),
    requestDeserialize: messageOf(input),
    responseSerialize: bytesOf(output),
    responseDeserialize: messageOf(output),
  };
}
