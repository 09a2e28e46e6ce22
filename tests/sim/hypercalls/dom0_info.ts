import { DOMINF, GetDomainInfo } from "../../../hypercall/abi/mod.ts";
import { NO_GFN } from "../domain.ts";
import type { SimXen } from "../sim_xen.ts";

/** dom0 as the toolstack sees it: it has no pages of the simulated host's. */
export function dom0Info(xen: SimXen): Uint8Array {
  return GetDomainInfo.encode({
    domain: 0,
    flags: DOMINF.running | (xen.options.pvhDom0 === true ? DOMINF.hvm_guest | DOMINF.hap : 0),
    shared_info_frame: NO_GFN,
    nr_online_vcpus: 1,
  });
}
