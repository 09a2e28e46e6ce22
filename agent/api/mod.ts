/** What callers have of the agent: the engine's interface, and the same over a Unix socket. */
export * from "./engine.ts";
export { AgentUnreachable, ApiClient, type CallControl } from "./client.ts";
export { type ApiServerOptions, serveApi } from "./server.ts";
export { SocketError } from "./socket.ts";
export { LogBuffer } from "./log_buffer.ts";
export { type LoggingOptions, startLogging } from "./logging.ts";
export { openApiDocument } from "./openapi.ts";
