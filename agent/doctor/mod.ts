/** Whether this host can fork, and what to do if not. */
export { examine } from "./doctor.ts";
export { type Finding, formatFindings, healthy } from "./finding.ts";
export { DOCTOR_FILES, type DoctorPorts } from "./ports.ts";
