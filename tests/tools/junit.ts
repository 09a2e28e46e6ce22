/** Reads the JUnit report that `deno test --junit-path` writes: one `testcase` a test and a step. */

export interface TestCase {
  /** As in the report, `./agent/x_test.ts`. */
  readonly file: string;
  readonly name: string;
  readonly result: "passed" | "failed" | "skipped";
}

const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };

function unescape(text: string): string {
  return text.replace(/&(?:#x([0-9a-fA-F]+)|#(\d+)|(\w+));/g, (whole, hex, decimal, name) => {
    if (hex !== undefined) return String.fromCodePoint(parseInt(hex, 16));
    if (decimal !== undefined) return String.fromCodePoint(parseInt(decimal, 10));
    return ENTITIES[name] ?? whole;
  });
}

/**
 * The cases of a report, in its order. Text cannot hold a bare `<`, so tags are told apart from content safely.
 * Throws a SyntaxError where a case lacks its name or file.
 */
export function parseJunit(xml: string): TestCase[] {
  const cases: TestCase[] = [];
  for (const match of xml.matchAll(/<testcase\b([^>]*?)(\/>|>([\s\S]*?)<\/testcase>)/g)) {
    const attributes = new Map<string, string>();
    for (const [, key, value] of (match[1] ?? "").matchAll(/([\w-]+)="([^"]*)"/g)) {
      if (key !== undefined && value !== undefined) attributes.set(key, unescape(value));
    }
    const name = attributes.get("name");
    const file = attributes.get("classname");
    if (name === undefined || file === undefined) throw new SyntaxError("a testcase without name or classname");
    const body = match[3] ?? "";
    const result = /<(failure|error)\b/.test(body) ? "failed" : /<skipped\b/.test(body) ? "skipped" : "passed";
    cases.push({ file, name, result });
  }
  return cases;
}
