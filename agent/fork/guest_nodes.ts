import { randomBytes } from "node:crypto";
import type { NodeOptions } from "../api/engine.ts";
import { identityNodes } from "../guest/nodes.ts";
import type { GuestNodes } from "./start.ts";
import type { CloneRecord, Ticket } from "./tickets.ts";

/** Who a clone is, and what its caller has for it. */
export function cloneNodes(ticket: Ticket, clone: CloneRecord, options: NodeOptions): GuestNodes {
  const { id, name, uuid } = clone;
  const seed = randomBytes(64);
  return {
    ...identityNodes({ id, ticket: ticket.name, family: ticket.family, name, uuid, seed }),
    ...options.nodes?.(clone.info()),
  };
}
