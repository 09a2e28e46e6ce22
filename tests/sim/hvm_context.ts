/** The saved context of an HVM domain: a stream of records (arch/x86/hvm/save.c, hvm.c). */
import {
  HVM_FILE_MAGIC,
  HVM_SAVE,
  HvmHwCpu,
  HvmHwLapic17,
  HvmHwLapic20,
  HvmHwMtrr,
  HvmSaveDescriptor,
  HvmSaveHeader,
} from "../../hypercall/abi/mod.ts";
import type { Domain } from "./domain.ts";
import { no } from "./errno.ts";
import type { Vcpu } from "./vcpu.ts";

const FILE_VERSION = 1;
/** Bits of a physical address on this host. */
const PHYSICAL_BITS = 46n;
const CR0_ET = 0x10n;
const CR0_PE = 0x1n;
const CR0_PG = 1n << 31n;
const FPU_INITIALISED = 1;

/** XSAVE's head (three masks), then the legacy area and its header. */
const XSAVE_BYTES = 24 + 512 + 64;
const LAPIC_REGS_BYTES = 1024;
const VMCE_BYTES = 32;
const TSC_ADJUST_BYTES = 8;

/** Per-vCPU records other than CPU, in the order of their typecodes, as a PVH domain has them. */
const VCPU_RECORDS = [
  HVM_SAVE.LAPIC,
  HVM_SAVE.LAPIC_REGS,
  HVM_SAVE.MTRR,
  HVM_SAVE.CPU_XSAVE,
  HVM_SAVE.VMCE_VCPU,
  HVM_SAVE.TSC_ADJUST,
  HVM_SAVE.CPU_MSR,
] as const;

/** LAPIC grew in Xen 4.20. */
export function lapicBytes(minor: number): number {
  return minor >= 20 ? HvmHwLapic20.size : HvmHwLapic17.size;
}

function lengthOf(typecode: number, minor: number): number | undefined {
  switch (typecode) {
    case HVM_SAVE.LAPIC:
      return lapicBytes(minor);
    case HVM_SAVE.LAPIC_REGS:
      return LAPIC_REGS_BYTES;
    case HVM_SAVE.MTRR:
      return HvmHwMtrr.size;
    case HVM_SAVE.CPU_XSAVE:
      return XSAVE_BYTES;
    case HVM_SAVE.VMCE_VCPU:
      return VMCE_BYTES;
    case HVM_SAVE.TSC_ADJUST:
      return TSC_ADJUST_BYTES;
    default:
      return undefined;
  }
}

/** Handlers that take a shorter record and fill it with zeros. */
const ZERO_EXTENDED: ReadonlySet<number> = new Set([HVM_SAVE.LAPIC, HVM_SAVE.VMCE_VCPU]);

/** Gives a vCPU the records that a domain builder would: protected mode, one FPU and SSE state. */
export function initialiseVcpu(vcpu: Vcpu, minor: number): void {
  vcpu.initialised = true;
  vcpu.down = false;
  vcpu.cpu.cr0 = CR0_PE | CR0_ET;
  vcpu.cpu.flags = FPU_INITIALISED;
  for (const typecode of VCPU_RECORDS) {
    const length = typecode === HVM_SAVE.CPU_MSR ? 8 : lengthOf(typecode, minor) ?? 0;
    vcpu.records.set(typecode, new Uint8Array(length));
  }
}

export function saveContext(domain: Domain, minor: number): Uint8Array<ArrayBuffer> {
  const parts: Uint8Array[] = [];
  const record = (typecode: number, instance: number, body: Uint8Array) => {
    parts.push(HvmSaveDescriptor.encode({ typecode, instance, length: body.byteLength }), body);
  };
  record(
    HVM_SAVE.HEADER,
    0,
    HvmSaveHeader.encode({ magic: HVM_FILE_MAGIC, version: FILE_VERSION, gtsc_khz: domain.tsc.khz }),
  );
  for (const vcpu of domain.vcpus) if (!vcpu.down) record(HVM_SAVE.CPU, vcpu.id, vcpu.cpuBytes);
  for (const typecode of VCPU_RECORDS) {
    for (const vcpu of domain.vcpus) {
      const body = vcpu.records.get(typecode) ?? new Uint8Array(lengthOf(typecode, minor) ?? 8);
      record(typecode, vcpu.id, body);
    }
  }
  record(HVM_SAVE.END, 0, new Uint8Array(0));
  const bytes = new Uint8Array(parts.reduce((sum, { byteLength }) => sum + byteLength, 0));
  let offset = 0;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.byteLength;
  }
  return bytes;
}

/** hvm_load(): 0 or -errno. What was read before an error stays applied. */
export function loadContext(domain: Domain, bytes: Uint8Array, minor: number): number {
  if (domain.dying) return no("EINVAL");
  const header = recordAt(bytes, 0);
  if (header === undefined || header.typecode !== HVM_SAVE.HEADER || header.body.byteLength !== HvmSaveHeader.size) {
    return no("ENODATA");
  }
  const { magic, version, gtsc_khz } = HvmSaveHeader.decode(header.body);
  if (magic !== HVM_FILE_MAGIC || version !== FILE_VERSION) return no("EINVAL");
  if (gtsc_khz !== 0) domain.tsc = { ...domain.tsc, khz: gtsc_khz };
  for (const vcpu of domain.vcpus) vcpu.down = true;
  for (let offset = header.end;;) {
    const record = recordAt(bytes, offset);
    if (record === undefined) return no("ENODATA");
    if (record.typecode === HVM_SAVE.END) return 0;
    const result = loadRecord(domain, record, minor);
    if (result !== 0) return result;
    offset = record.end;
  }
}

interface SaveRecord {
  readonly typecode: number;
  readonly instance: number;
  readonly body: Uint8Array;
  readonly end: number;
}

function recordAt(bytes: Uint8Array, offset: number): SaveRecord | undefined {
  if (offset + HvmSaveDescriptor.size > bytes.byteLength) return undefined;
  const { typecode, instance, length } = HvmSaveDescriptor.decode(bytes, offset);
  const start = offset + HvmSaveDescriptor.size;
  if (start + length > bytes.byteLength) return undefined;
  return { typecode, instance, body: bytes.subarray(start, start + length), end: start + length };
}

function loadRecord(domain: Domain, { typecode, instance, body }: SaveRecord, minor: number): number {
  const vcpu = domain.vcpus[instance];
  if (vcpu === undefined) return no("EINVAL");
  if (typecode === HVM_SAVE.CPU) return loadCpu(vcpu, body);
  if (typecode === HVM_SAVE.CPU_MSR) {
    if (body.byteLength < 8 || (body.byteLength - 8) % 16 !== 0) return no("EINVAL");
    vcpu.records.set(typecode, body.slice());
    return 0;
  }
  const length = lengthOf(typecode, minor);
  if (length === undefined || body.byteLength > length) return no("EINVAL");
  if (body.byteLength < length && !ZERO_EXTENDED.has(typecode)) return no("EINVAL");
  const whole = new Uint8Array(length);
  whole.set(body);
  vcpu.records.set(typecode, whole);
  return 0;
}

function loadCpu(vcpu: Vcpu, body: Uint8Array): number {
  if (body.byteLength > HvmHwCpu.size) return no("EINVAL");
  const bytes = new Uint8Array(HvmHwCpu.size);
  bytes.set(body);
  const cpu = HvmHwCpu.view(bytes);
  const pagingWithoutProtection = (cpu.cr0 & (CR0_PE | CR0_PG)) === CR0_PG;
  if (
    cpu.pad0 !== 0 || (cpu.flags & ~FPU_INITIALISED) !== 0 || (cpu.cr0 & CR0_ET) === 0n || pagingWithoutProtection ||
    cpu.cr3 >> PHYSICAL_BITS !== 0n || cpu.msr_tsc_aux >> 32n !== 0n
  ) return no("EINVAL");
  vcpu.cpuBytes.set(bytes);
  vcpu.initialised = true;
  vcpu.down = false;
  return 0;
}
