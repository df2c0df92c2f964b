// Reads the google.rpc details of an error from the trailing metadata.
import { fromBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { BadRequestSchema } from "./gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "./gen/google/rpc/status_pb.js";

/** The fields a request was refused for: a list of { field, description }, empty if the error names none. */
export function fieldViolations(error) {
  const [encoded] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!encoded) return [];
  const { details } = fromBinary(StatusSchema, encoded);
  return details.flatMap((detail) => anyUnpack(detail, BadRequestSchema)?.fieldViolations ?? []);
}
