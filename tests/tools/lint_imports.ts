/**
 * The project's lint rules, for `deno lint` (deno.json, `lint.plugins`):
 *
 * - `snowflock/imports`: imports run one way (see `import_rules.ts`), whether static, dynamic, re-exported or of types.
 * - `snowflock/ffi`: FFI in native code only.
 * - `snowflock/worker-url`: a worker's address comes from `workerUrl()`, for a relative one is wrong in the built program.
 */
import { importFault, isNative, isTest } from "./import_rules.ts";

const ROOT = new URL("../../", import.meta.url);

/** `file` relative to the project's root, or undefined outside it. */
function relative(file: URL): string | undefined {
  return file.href.startsWith(ROOT.href) ? decodeURIComponent(file.href.slice(ROOT.href.length)) : undefined;
}

function fileUrl(filename: string): URL {
  return new URL(filename.split("/").map(encodeURIComponent).join("/"), ROOT);
}

function checkImports(context: Deno.lint.RuleContext): Deno.lint.LintVisitor {
  const base = fileUrl(context.filename);
  const from = relative(base);
  if (from === undefined) return {};
  const check = (node: Deno.lint.Node, source: Deno.lint.Node | null | undefined) => {
    if (source?.type !== "Literal" || typeof source.value !== "string" || !/^(\.{0,2}\/|file:)/.test(source.value)) {
      return;
    }
    const to = relative(new URL(source.value, base));
    const fault = to === undefined ? `${from} imports a file outside the project` : importFault(from, to);
    if (fault !== undefined) context.report({ node, message: fault });
  };
  return {
    ImportDeclaration: (node) => check(node, node.source),
    ExportNamedDeclaration: (node) => check(node, node.source),
    ExportAllDeclaration: (node) => check(node, node.source),
    ImportExpression: (node) => check(node, node.source),
    TSImportType: (node) => check(node, node.argument.type === "TSLiteralType" ? node.argument.literal : node.argument),
  };
}

function checkFfi(context: Deno.lint.RuleContext): Deno.lint.LintVisitor {
  const path = relative(fileUrl(context.filename));
  if (path === undefined || isNative(path) || isTest(path)) return {};
  return {
    MemberExpression(node) {
      if (node.object.type !== "Identifier" || node.object.name !== "Deno" || node.property.type !== "Identifier") {
        return;
      }
      if (/^(dlopen|Unsafe(Pointer|PointerView|Callback|FnPointer))$/.test(node.property.name)) {
        context.report({ node, message: `FFI belongs to native code (native/ or native_*.ts), not to ${path}` });
      }
    },
  };
}

function checkWorkerUrl(context: Deno.lint.RuleContext): Deno.lint.LintVisitor {
  const path = relative(fileUrl(context.filename));
  if (path === undefined || isTest(path)) return {};
  return {
    NewExpression(node) {
      if (node.callee.type !== "Identifier" || node.callee.name !== "Worker") return;
      const [address] = node.arguments;
      if (address?.type === "NewExpression" || address?.type === "Literal" || address?.type === "TemplateLiteral") {
        context.report({ node, message: "a worker's address comes from workerUrl() of agent/worker_url.ts" });
      }
    },
  };
}

const plugin: Deno.lint.Plugin = {
  name: "snowflock",
  rules: {
    imports: { create: checkImports },
    ffi: { create: checkFfi },
    "worker-url": { create: checkWorkerUrl },
  },
};

export default plugin;
