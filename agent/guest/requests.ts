/** Carries out one parsed request of a guest and words the answer. */
import { getLogger } from "@logtape/logtape";
import { type Engine, EngineError } from "../api/engine.ts";
import { NODES } from "./nodes.ts";
import { errorAnswer, type GuestRequest, joinAnswer, okAnswer } from "./protocol.ts";

const logger = getLogger(["snowflock", "guest"]);

/** How long a `join` is held before its client is told to ask again, so that other processes of the guest get their turn. */
export const JOIN_WAIT_MS = 1000;

/**
 * The answer to `request`, whose number is `seq`, from domain `domid`. Never rejects: failures are answers. `signal` cuts a `join`
 * short and nothing else, since nothing else can be left half done.
 */
export async function execute(
  engine: Engine,
  domid: number,
  seq: string,
  request: GuestRequest,
  signal: AbortSignal,
): Promise<string> {
  const caller = { caller: domid };
  // A clone finds the answer to the call that it wakes up in.
  const nodes = (clone: { readonly id: number }) => ({ [NODES.answer]: okAnswer(seq, String(clone.id)) });
  try {
    switch (request.verb) {
      case "request-ticket": {
        const { ticket, granted } = await engine.requestTicket({ domain: domid, clones: request.clones }, caller);
        return okAnswer(seq, `${ticket} ${granted}`);
      }
      case "clone":
        await engine.clone(request.ticket, { ...caller, nodes });
        return okAnswer(seq, "0");
      case "join":
        return joinAnswer(
          seq,
          await engine.join(request.ticket, { ...caller, timeoutMs: JOIN_WAIT_MS, signal }),
          request.from,
        );
      case "kill":
        await engine.kill(request.ticket, caller);
        return okAnswer(seq);
      case "exit":
        await engine.cloneExited(domid, request.status, request.data);
        return okAnswer(seq);
      case "checkpoint-parent": {
        const { ticket } = await engine.checkpoint(domid, { ...caller, nodes });
        return okAnswer(seq, ticket);
      }
    }
  } catch (error) {
    if (!(error instanceof EngineError)) {
      logger.error("{verb} of domain {domid} failed: {error}", { verb: request.verb, domid, error });
      return errorAnswer(seq, new EngineError("failed", "The agent failed; its log says why"));
    }
    if (request.verb === "join" && (error.code === "timeout" || error.code === "aborted")) return okAnswer(seq, "wait");
    logger.info("{verb} of domain {domid} was refused: {code}: {message}", {
      verb: request.verb,
      domid,
      code: error.code,
      message: error.message,
    });
    return errorAnswer(seq, error);
  }
}
