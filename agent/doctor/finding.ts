/** What a check found. */

export interface Finding {
  /** What was looked at: `root`, `module vxlan`. */
  readonly check: string;
  /** `warning`: the agent runs, with less. `skipped`: could not be looked at, because another check failed. */
  readonly status: "ok" | "warning" | "fail" | "skipped";
  /** One line. */
  readonly detail: string;
  /** What to do about it: a command or a sentence. */
  readonly remedy?: string;
}

/** Whether the agent can run. */
export function healthy(findings: readonly Finding[]): boolean {
  return findings.every((finding) => finding.status !== "fail");
}

const MARK: Readonly<Record<Finding["status"], string>> = { ok: "ok", warning: "warn", fail: "FAIL", skipped: "skip" };

/** For a terminal: a line each, remedies indented below. */
export function formatFindings(findings: readonly Finding[]): string {
  const width = Math.max(0, ...findings.map((finding) => finding.check.length));
  const lines = findings.flatMap(({ check, status, detail, remedy }) => [
    `${MARK[status].padEnd(5)} ${check.padEnd(width)}  ${detail}`,
    ...(remedy === undefined ? [] : [`${" ".repeat(width + 8)}-> ${remedy}`]),
  ]);
  return `${lines.join("\n")}\n`;
}
