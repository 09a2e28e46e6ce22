/** The agent's settings. */
export { Config } from "./schema.ts";
export { checkConfig, ConfigError, MAX_CONFIG_BYTES, parseConfig } from "./parse.ts";
export { configHelp, configJsonSchema, configTable, type Setting, settings } from "./manual.ts";
