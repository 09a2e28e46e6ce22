/** The `snowflock` program: the only place, beside workers' entries, where the real machine is opened. */
import { runAgent } from "./agent/run.ts";
import { LogBuffer, startLogging } from "./agent/api/mod.ts";
import { buildProgram, type CliDependencies, runProgram } from "./agent/cli/mod.ts";
import { DOCTOR_FILES, examine } from "./agent/doctor/mod.ts";
import { openMachine } from "./hypercall/native/mod.ts";
import { openXen } from "./hypercall/xen.ts";
import { connectXenstored, openXenstore } from "./hypercall/xenstore/mod.ts";
import manifest from "./deno.json" with { type: "json" };

const version: string = manifest.version;

const dependencies: CliDependencies = {
  version,
  async runAgent(config, signal) {
    const logs = new LogBuffer();
    const encoder = new TextEncoder();
    const write = (line: string) => void Deno.stderr.writeSync(encoder.encode(line));
    await using _logging = await startLogging({ level: config.log.level, write, buffer: logs });
    await runAgent({ config, version, openMachine, logs, signal });
  },
  doctor: () =>
    examine({
      ...DOCTOR_FILES,
      openXen: () => openXen(openMachine().hypercalls),
      askXenstored: async () => {
        await using xenstore = openXenstore(await connectXenstored());
        await xenstore.list("/");
      },
    }),
};

if (import.meta.main) Deno.exit(await runProgram(buildProgram(dependencies), dependencies, Deno.args));
