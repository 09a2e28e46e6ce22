/** Errors of the engine as HTTP statuses. */
import type { ContentfulStatusCode } from "hono/utils/http-status";
import { EngineError, type EngineErrorCode } from "./engine.ts";

const STATUS: Readonly<Record<EngineErrorCode, ContentfulStatusCode>> = {
  "no-such-ticket": 404,
  "no-such-domain": 404,
  "not-yours": 403,
  "bad-count": 400,
  "bad-request": 400,
  "no-memory": 507,
  "cannot-suspend": 409,
  busy: 409,
  ended: 410,
  limit: 429,
  timeout: 504,
  // nginx's "client closed request"; nobody reads it.
  aborted: 499 as ContentfulStatusCode,
  unsupported: 422,
  failed: 500,
};

export function httpStatus(error: EngineError): ContentfulStatusCode {
  return STATUS[error.code];
}

/** Whether text from outside is a code of {@link EngineError}. */
export function isErrorCode(code: string): code is EngineErrorCode {
  return Object.hasOwn(STATUS, code);
}
