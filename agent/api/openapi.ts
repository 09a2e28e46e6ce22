/** The OpenAPI 3.1 document, made from the operations and their schemas. */
import { z } from "zod";
import { MAX_NAME_LENGTH } from "./engine.ts";
import { type Operation, OPERATIONS } from "./operations.ts";
import { ErrorSchema } from "./schemas.ts";

type Json = Record<string, unknown>;

export function openApiDocument(version: string): Json {
  const paths: Record<string, Json> = {};
  for (const operation of OPERATIONS) {
    (paths[operation.path] ??= {})[operation.method] = describe(operation);
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "snowflock agent",
      version,
      description: "Forks of running Xen domains. Served on a Unix socket whose mode is the access control.",
    },
    paths,
    components: { schemas: { Error: schemaOf(ErrorSchema, "output") } },
  };
}

function describe(operation: Operation): Json {
  const success: Json = { description: operation.status === 204 ? "Done" : operation.summary };
  if (operation.response !== undefined) {
    success.content = { "application/json": { schema: schemaOf(operation.response, "output") } };
  }
  const described: Json = {
    operationId: operation.id,
    summary: operation.summary,
    responses: {
      [operation.status]: success,
      default: {
        description: "A failure; `code` says which",
        content: { "application/json": { schema: { $ref: "#/components/schemas/Error" } } },
      },
    },
  };
  if (operation.parameter !== undefined) {
    described.parameters = [{
      name: "name",
      in: "path",
      required: true,
      description: operation.parameter,
      schema: { type: "string", maxLength: MAX_NAME_LENGTH },
    }];
  }
  if (operation.body !== undefined) {
    described.requestBody = {
      required: true,
      content: { "application/json": { schema: schemaOf(operation.body, "input") } },
    };
  }
  return described;
}

function schemaOf(schema: z.ZodType, io: "input" | "output"): Json {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io });
  return rest;
}
