/** The JSON that crosses the API, as schemas. They are the types of `engine.ts` again; the compiler checks that both agree. */
import { z } from "zod";
import {
  type CloneInfo,
  type DomainSummary,
  type ForkReport,
  type ForkSummary,
  type Identity,
  MAX_CLONES,
  MAX_EXIT_DATA_BYTES,
  MAX_NAME_LENGTH,
  type TicketInfo,
  type TicketRequest,
} from "./engine.ts";

/** The schema describes exactly `T`: what it gives can be used as `T`, and any `T` passes for it. */
type Exactly<T> = z.ZodType<T> & { readonly _zod: { readonly output: T } };

const ms = z.number().min(0).describe("milliseconds");
const domid = z.int().min(0).max(0x7ff0);

const CloneState = z.enum(["shell", "restoring", "running", "exited", "killed", "lost"]);

const CloneTimes = z.object({
  shellMs: ms.exactOptional(),
  restoreMs: ms.exactOptional(),
  startedMs: ms.exactOptional(),
  firstRunMs: ms.exactOptional(),
});

export const CloneInfoSchema = z.object({
  ticket: z.string(),
  id: z.int().min(1).max(MAX_CLONES).describe("1..granted; 0 is the parent"),
  name: z.string(),
  uuid: z.string(),
  host: z.string(),
  domid: domid.exactOptional().describe("absent once it is gone"),
  state: CloneState,
  reason: z.string().exactOptional(),
  status: z.int().min(0).max(255).exactOptional().describe("once it exited"),
  data: z.string().exactOptional().describe("what it handed over with its status"),
  times: CloneTimes,
  memory: z.record(z.string(), z.number()).exactOptional().describe("counters of its memory"),
}) satisfies Exactly<CloneInfo>;

export const ForkSummarySchema = z.object({
  ticket: z.string(),
  pauseMs: ms.describe("how long the parent stood still, milliseconds"),
  suspendMs: ms,
  captureMs: ms,
  nominateMs: ms,
  resumeMs: ms,
  descriptorBytes: z.number().min(0),
  cloneMs: ms.describe("from the call to the last clone's unpause, milliseconds"),
}) satisfies Exactly<ForkSummary>;

export const ForkReportSchema = ForkSummarySchema.extend({
  clones: z.array(CloneInfoSchema).readonly(),
}) satisfies Exactly<ForkReport>;

export const TicketInfoSchema = z.object({
  ticket: z.string(),
  parent: z.object({ domid, name: z.string() }),
  granted: z.int().min(0).max(MAX_CLONES),
  state: z.enum(["ready", "cloned", "ended"]),
  clones: z.array(CloneInfoSchema).readonly(),
  fork: ForkSummarySchema.exactOptional().describe("its fork, once it has been"),
}) satisfies Exactly<TicketInfo>;

export const IdentitySchema = z.object({
  id: z.int().min(0).describe("0: no clone"),
  ticket: z.string().exactOptional(),
  family: z.string(),
}) satisfies Exactly<Identity>;

export const DomainSummarySchema = z.object({
  domid,
  name: z.string(),
  parentDomid: domid.exactOptional(),
  parent: z.string().exactOptional(),
  identity: IdentitySchema,
}) satisfies Exactly<DomainSummary>;

/** An error, as every failing call answers. */
export const ErrorSchema = z.object({ error: z.object({ code: z.string(), message: z.string() }) });

// Requests are strict: a misspelt option is an error, not a default.

export const TicketRequestSchema = z.strictObject({
  domain: z.union([z.string().min(1).max(MAX_NAME_LENGTH), domid]).describe("name or domid of the parent"),
  clones: z.number().describe(`clones wanted, 1..${MAX_CLONES}`),
}) satisfies Exactly<TicketRequest>;

export const CloneRequestSchema = z.strictObject({
  fill: z.boolean().exactOptional().describe("fetch the rest of the memory in the background"),
});

/** Longest wait of one call, so that a caller who went away does not wait for ever. */
const MAX_JOIN_MS = 60_000;

export const JoinRequestSchema = z.strictObject({
  timeoutMs: z.int().min(0).max(MAX_JOIN_MS).default(MAX_JOIN_MS).describe("milliseconds"),
});

export const ExitRequestSchema = z.strictObject({
  status: z.int().min(0).max(255),
  data: z.string().max(MAX_EXIT_DATA_BYTES).default(""),
});

export const ShownSchema = z.union([TicketInfoSchema, CloneInfoSchema]);
export const TicketsSchema = z.object({ tickets: z.array(TicketInfoSchema) });
export const ClonesSchema = z.object({ clones: z.array(CloneInfoSchema) });
export const DomainsSchema = z.object({ domains: z.array(DomainSummarySchema) });
export const VersionSchema = z.object({ version: z.string(), host: z.string() });
