/** {@link Xen} on a {@link HypercallPort}. */
import type { HypercallPort } from "./ports.ts";
import { contextCalls } from "./xen/context.ts";
import { domainCalls } from "./xen/domains.ts";
import { detect, hostCalls } from "./xen/host.ts";
import { Invoker } from "./xen/invoke.ts";
import { memoryCalls } from "./xen/memory.ts";
import { PagingBatch, pagingCalls } from "./xen/paging.ts";
import type { Xen } from "./xen_api.ts";

/**
 * Xen through this port. It holds a few hundred KiB of pinned memory until it is disposed of. Throws a XenError for a release of
 * Xen whose interfaces are not known here.
 */
export function openXen(port: HypercallPort): Xen & Disposable {
  const { version, interfaces } = detect(port);
  using stack = new DisposableStack();
  const invoker = stack.use(new Invoker(port, interfaces));
  const batch = stack.use(new PagingBatch(invoker));
  const held = stack.move();
  return {
    version,
    ...hostCalls(invoker),
    ...domainCalls(invoker),
    ...contextCalls(invoker),
    ...memoryCalls(invoker),
    ...pagingCalls(invoker, batch),
    [Symbol.dispose]: () => held.dispose(),
  };
}
