/** Every call of the API, as data: from it come the routes and the OpenAPI document. */
import type { z } from "zod";
import { type Engine, EngineError, MAX_NAME_LENGTH } from "./engine.ts";
import {
  CloneRequestSchema,
  ClonesSchema,
  DomainsSchema,
  ExitRequestSchema,
  ForkReportSchema,
  IdentitySchema,
  JoinRequestSchema,
  ShownSchema,
  TicketInfoSchema,
  TicketRequestSchema,
  TicketsSchema,
  VersionSchema,
} from "./schemas.ts";

/** What operations run on. */
export interface OperationContext {
  readonly engine: Engine;
  readonly version: string;
  readonly host: string;
}

export interface Operation {
  readonly id: string;
  readonly method: "get" | "post" | "delete";
  /** With `{name}` for the one parameter. */
  readonly path: string;
  readonly summary: string;
  /** What `{name}` is. */
  readonly parameter?: string;
  readonly body?: z.ZodType;
  /** Of a success; none for 204. */
  readonly response?: z.ZodType;
  readonly status: 200 | 201 | 204;
  /** `name` is the path's parameter, decoded and bounded, empty if there is none; `body` has passed the schema. */
  readonly run: (context: OperationContext, name: string, body: unknown) => unknown;
}

/** Ties the type of the body to its schema. */
function operation<Body = undefined>(
  spec: Omit<Operation, "body" | "run"> & {
    readonly body?: z.ZodType<Body>;
    readonly run: (context: OperationContext, name: string, body: Body) => unknown;
  },
): Operation {
  return spec as Operation;
}

/** A domain in a path: digits are a domid. */
function domainOf(name: string): string | number {
  return /^\d{1,5}$/.test(name) ? Number(name) : name;
}

export const OPERATIONS: readonly Operation[] = [
  operation({
    id: "version",
    method: "get",
    path: "/v1/version",
    summary: "The agent's version and host",
    response: VersionSchema,
    status: 200,
    run: ({ version, host }) => ({ version, host }),
  }),
  operation({
    id: "listTickets",
    method: "get",
    path: "/v1/tickets",
    summary: "Tickets, newest first",
    response: TicketsSchema,
    status: 200,
    run: ({ engine }) => ({ tickets: engine.list() }),
  }),
  operation({
    id: "requestTicket",
    method: "post",
    path: "/v1/tickets",
    summary: "Reserve clones of a domain and make their shells",
    body: TicketRequestSchema,
    response: TicketInfoSchema,
    status: 201,
    run: ({ engine }, _name, body) => engine.requestTicket(body),
  }),
  operation({
    id: "clone",
    method: "post",
    path: "/v1/tickets/{name}/clone",
    summary: "Fork the ticket's parent; answers when every clone runs or is lost",
    parameter: "ticket",
    body: CloneRequestSchema,
    response: ForkReportSchema,
    status: 200,
    run: ({ engine }, name, body) => engine.clone(name, body),
  }),
  operation({
    id: "join",
    method: "post",
    path: "/v1/tickets/{name}/join",
    summary: "Wait until all clones have ended, at most a minute; on `timeout`, ask again",
    parameter: "ticket",
    body: JoinRequestSchema,
    response: ClonesSchema,
    status: 200,
    run: async ({ engine }, name, body) => ({ clones: await engine.join(name, body) }),
  }),
  operation({
    id: "kill",
    method: "delete",
    path: "/v1/tickets/{name}",
    summary: "End the clones and the ticket",
    parameter: "ticket",
    status: 204,
    run: ({ engine }, name) => engine.kill(name),
  }),
  operation({
    id: "show",
    method: "get",
    path: "/v1/show/{name}",
    summary: "A ticket, or a clone by its name, UUID or domid",
    parameter: "ticket or clone",
    response: ShownSchema,
    status: 200,
    run: ({ engine }, name) => {
      const shown = engine.show(name);
      if (shown === undefined) throw new EngineError("no-such-ticket", `There is no ticket and no clone ${name}`);
      return shown;
    },
  }),
  operation({
    id: "listDomains",
    method: "get",
    path: "/v1/domains",
    summary: "Parents and clones on this host",
    response: DomainsSchema,
    status: 200,
    run: ({ engine }) => ({ domains: engine.domains() }),
  }),
  operation({
    id: "checkpoint",
    method: "post",
    path: "/v1/domains/{name}/checkpoint",
    summary: "Suspend a domain for ever, as the template of clones made later",
    parameter: "name or domid",
    response: TicketInfoSchema,
    status: 201,
    run: ({ engine }, name) => engine.checkpoint(domainOf(name)),
  }),
  operation({
    id: "identity",
    method: "get",
    path: "/v1/domains/{name}/identity",
    summary: "Which clone of which family a domain is",
    parameter: "domid",
    response: IdentitySchema,
    status: 200,
    run: ({ engine }, name) => engine.identity(domidOf(name)),
  }),
  operation({
    id: "cloneExited",
    method: "post",
    path: "/v1/domains/{name}/exit",
    summary: "End a clone with a status and data, as it would itself",
    parameter: "domid",
    body: ExitRequestSchema,
    status: 204,
    run: ({ engine }, name, body) => engine.cloneExited(domidOf(name), body.status, body.data),
  }),
];

function domidOf(name: string): number {
  const domain = domainOf(name);
  if (typeof domain === "number") return domain;
  throw new EngineError("bad-request", `${name.slice(0, MAX_NAME_LENGTH)} is no domid`);
}
