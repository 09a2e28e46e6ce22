/** Tickets, clones and domains as text for a terminal. Whatever a guest chose is made harmless first. */
import type { CloneInfo, DomainSummary, ForkReport, TicketInfo } from "../api/engine.ts";
import { joinLine, printable } from "../guest/protocol.ts";

/** Columns as wide as their widest cell; no trailing blanks. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [head, ...rows].map((row) => row.map(printable));
  const widths = head.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)));
  return all.map((row) => `${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  ").trimEnd()}\n`).join(
    "",
  );
}

function ms(value: number | undefined): string {
  return value === undefined ? "-" : `${value.toFixed(value < 10 ? 1 : 0)} ms`;
}

export function formatTickets(tickets: readonly TicketInfo[]): string {
  if (tickets.length === 0) return "No tickets.\n";
  return table(
    ["TICKET", "PARENT", "STATE", "CLONES", "RUNNING", "ENDED"],
    tickets.map(({ ticket, parent, state, clones, granted }) => {
      const count = (...states: string[]) => String(clones.filter((clone) => states.includes(clone.state)).length);
      const name = `${parent.name} (${parent.domid})`;
      return [ticket, name, state, String(granted), count("running"), count("exited", "killed", "lost")];
    }),
  );
}

export function formatClones(clones: readonly CloneInfo[]): string {
  return table(
    ["ID", "NAME", "HOST", "DOMID", "STATE", "STARTED", "FIRST RUN", "RESULT"],
    clones.map((clone) => [
      String(clone.id),
      clone.name,
      clone.host,
      clone.domid === undefined ? "-" : String(clone.domid),
      clone.state,
      ms(clone.times.startedMs),
      ms(clone.times.firstRunMs),
      clone.state === "exited" ? `${clone.status ?? 0} ${clone.data ?? ""}`.trimEnd().slice(0, 60) : clone.reason ?? "",
    ]),
  );
}

export function formatFork(report: Omit<ForkReport, "clones">): string {
  const { pauseMs, suspendMs, captureMs, nominateMs, resumeMs, descriptorBytes, cloneMs } = report;
  const stages = `suspend ${ms(suspendMs)}, capture ${ms(captureMs)}, nominate ${ms(nominateMs)}, resume ${
    ms(resumeMs)
  }`;
  return `parent paused ${ms(pauseMs)} (${stages})\n` +
    `clones running after ${ms(cloneMs)}; descriptor ${Math.ceil(descriptorBytes / 1024)} KiB\n`;
}

export function formatTicket(ticket: TicketInfo): string {
  const { parent, state, fork, clones } = ticket;
  const head = `ticket ${ticket.ticket}: ${clones.length} clones of ${
    printable(parent.name)
  } (${parent.domid}), ${state}\n`;
  return head + (fork === undefined ? "" : formatFork(fork)) + (clones.length === 0 ? "" : formatClones(clones));
}

/** Every field of a clone on a line of its own. */
export function formatClone(clone: CloneInfo): string {
  const rows: [string, string][] = [["clone", `${clone.id} of ticket ${clone.ticket}`]];
  for (const key of ["name", "uuid", "host", "domid", "state", "reason", "status", "data"] as const) {
    const value = clone[key];
    if (value !== undefined) rows.push([key, printable(String(value))]);
  }
  for (const [stage, value] of Object.entries(clone.times)) rows.push([stage.replace(/Ms$/, ""), ms(value)]);
  for (const [counter, value] of Object.entries(clone.memory ?? {})) rows.push([printable(counter), String(value)]);
  const width = Math.max(...rows.map(([key]) => key.length));
  return rows.map(([key, value]) => `${key.padEnd(width)}  ${value}\n`).join("");
}

/** `sf join`'s lines. */
export function formatJoined(clones: readonly CloneInfo[]): string {
  return clones.map((clone) => `${joinLine(clone)}\n`).join("");
}

/** Families as trees: each domain below its parent. */
export function formatTree(domains: readonly DomainSummary[]): string {
  if (domains.length === 0) return "No domains.\n";
  const names = new Set(domains.map((domain) => domain.name));
  const below = new Map<string, DomainSummary[]>();
  const roots: DomainSummary[] = [];
  for (const domain of domains) {
    // A clone whose parent is gone, or is on another host, stands at the root.
    const parent = domain.parent;
    if (parent === undefined || parent === domain.name || !names.has(parent)) roots.push(domain);
    else below.set(parent, [...below.get(parent) ?? [], domain]);
  }
  const lines: string[] = [];
  const seen = new Set<DomainSummary>();
  const walk = (domain: DomainSummary, prefix: string, branch: string, rest: string) => {
    if (seen.has(domain)) return;
    seen.add(domain);
    const { ticket, id } = domain.identity;
    const clone = ticket === undefined ? "" : `  clone ${id} of ${ticket}`;
    lines.push(`${prefix}${branch}${printable(domain.name)} (${domain.domid})${clone}\n`);
    const children = below.get(domain.name) ?? [];
    children.forEach((child, index) => {
      const last = index === children.length - 1;
      walk(child, prefix + rest, last ? "└─ " : "├─ ", last ? "   " : "│  ");
    });
  };
  for (const root of roots) walk(root, "", "", "");
  return lines.join("");
}
