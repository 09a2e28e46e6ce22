/** The `snowflock` command line. */
export { buildProgram, runProgram } from "./program.ts";
export { type CliDependencies, DEFAULT_SOCKET, ExitStatus, Invocation } from "./context.ts";
export { type CliIo, PROCESS_IO } from "./io.ts";
