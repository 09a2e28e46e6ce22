/** The block interface as declared here against what a C compiler sees in Xen's own headers (libxen-dev). */
import { equal } from "node:assert/strict";
import * as abi from "./abi.ts";

const STRUCTS = {
  "struct blkif_request": abi.Request,
  "struct blkif_request_segment": abi.Segment,
  "struct blkif_request_discard": abi.DiscardRequest,
  "struct blkif_request_indirect": abi.IndirectRequest,
  "struct blkif_response": abi.Response,
  "struct blkif_sring": abi.SharedRing,
};
/** Its C name is a union of private data. */
const NOT_IN_C = new Set(["private"]);

const NUMBERS: Readonly<Record<string, number>> = {
  BLKIF_OP_READ: abi.OP_READ,
  BLKIF_OP_WRITE: abi.OP_WRITE,
  BLKIF_OP_WRITE_BARRIER: abi.OP_WRITE_BARRIER,
  BLKIF_OP_FLUSH_DISKCACHE: abi.OP_FLUSH_DISKCACHE,
  BLKIF_OP_DISCARD: abi.OP_DISCARD,
  BLKIF_OP_INDIRECT: abi.OP_INDIRECT,
  BLKIF_RSP_OKAY: abi.RSP_OKAY,
  BLKIF_RSP_ERROR: abi.RSP_ERROR,
  BLKIF_RSP_EOPNOTSUPP: abi.RSP_EOPNOTSUPP,
  BLKIF_MAX_SEGMENTS_PER_REQUEST: abi.MAX_DIRECT_SEGMENTS,
  "__CONST_RING_SIZE(blkif, 4096)": abi.SLOTS,
  "sizeof(union blkif_sring_entry)": abi.SLOT_BYTES,
  "sizeof(struct blkif_request)": abi.Request.size,
  "sizeof(struct blkif_request_segment)": abi.Segment.size,
};

async function evaluate(expressions: readonly string[]): Promise<number[]> {
  const directory = await Deno.makeTempDir({ prefix: "blkif-" });
  try {
    const includes = ["stdio.h", "stddef.h", "stdint.h", "string.h", "xen/xen.h", "xen/io/ring.h", "xen/io/blkif.h"]
      .map((name) => `#include <${name}>`);
    const lines = expressions.map((expression) => `printf("%lld\\n", (long long)(${expression}));`);
    const source = [...includes, "int main(void) {", ...lines, "}"].join("\n");
    await Deno.writeTextFile(`${directory}/a.c`, source);
    const gcc = await new Deno.Command("gcc", { args: ["-w", "-o", `${directory}/a`, `${directory}/a.c`] }).output();
    equal(
      gcc.code,
      0,
      `gcc cannot compile against Xen's headers (libxen-dev): ${new TextDecoder().decode(gcc.stderr)}`,
    );
    const { stdout } = await new Deno.Command(`${directory}/a`).output();
    return new TextDecoder().decode(stdout).trim().split("\n").map(Number);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("structs and numbers are those of Xen's headers", async () => {
  const wanted = new Map(Object.entries(NUMBERS));
  for (const [name, { offsets }] of Object.entries(STRUCTS)) {
    for (const [field, offset] of Object.entries(offsets)) {
      if (!NOT_IN_C.has(field)) wanted.set(`offsetof(${name}, ${field})`, offset);
    }
  }
  const values = await evaluate([...wanted.keys()]);
  [...wanted].forEach(([expression, value], index) => equal(value, values[index], expression));
});
