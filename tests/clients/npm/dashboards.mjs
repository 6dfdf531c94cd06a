// The dashboards beside Grafana's own types: @grafana/schema, as npm has it. Every field of a dashboard, a panel, a query
// and a panel's options must be one that Grafana knows, with a value that it takes.
//
//     node dashboards.mjs DASHBOARDS MODULES
//
// MODULES is the folder where `npm ci` put the packages (target/npm). Exits with 1 and the compiler's messages when a
// field does not fit. Called by tests/tests/dashboards.rs.

import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, modules] = process.argv.slice(2);
const require = createRequire(join(modules, "package.json"));
const ts = require("typescript");
const { version } = require("@grafana/schema/package.json");

const composable = join(modules, "node_modules/@grafana/schema/dist/types/raw/composable");
// Enums of the schema are strings and numbers in JSON.
const head = `
import type { Dashboard, DataQuery, FieldConfigSource, GraphFieldConfig, Panel } from "@grafana/schema";
import type { Options as stat } from "${composable}/stat/panelcfg/x/types.gen";
import type { Options as bargauge } from "${composable}/bargauge/panelcfg/x/types.gen";
import type { Options as timeseries } from "${composable}/timeseries/panelcfg/x/types.gen";
// The schema leaves a query to its data source; these are the fields of Prometheus' that we use.
type PrometheusQuery = DataQuery & { expr: string, legendFormat?: string, instant?: boolean, range?: boolean };
type Plain<T> = unknown extends T ? T
  : T extends string ? \`\${T}\` : T extends number ? (\`\${T}\` extends \`\${infer N extends number}\` ? N : number)
  : T extends Array<infer E> ? Plain<E>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type Some<T> = { [K in keyof T]?: T[K] extends object | undefined ? Some<T[K]> : T[K] };
type Options = { stat: stat, bargauge: bargauge, timeseries: timeseries };
`;
const scratch = mkdtempSync(join(modules, "dashboards-"));
try {
  const files = [];
  let panels = 0;
  for (const name of readdirSync(folder).filter(name => name.endsWith(".json"))) {
    const dashboard = JSON.parse(readFileSync(join(folder, name), "utf8"));
    const parts = [head];
    for (const { options, fieldConfig, targets, ...panel } of dashboard.panels) {
      const { custom = {}, ...defaults } = fieldConfig.defaults;
      const at = `${name} ${panel.title}`;
      const say = (type, value) => parts.push(`// ${at}\n({} as { f(_: ${type}): void }).f(${JSON.stringify(value, null, 1)});`);
      say("Plain<Panel>", panel);
      say(`Some<Plain<Options["${panel.type}"]>>`, options);
      say("Plain<FieldConfigSource>", { ...fieldConfig, defaults });
      say("Some<Plain<GraphFieldConfig>>", custom);
      targets.forEach(target => say("Plain<PrometheusQuery>", target));
      panels += 1;
    }
    const { panels: _, ...rest } = dashboard;
    parts.push(`// ${name}\n({} as { f(_: Plain<Omit<Dashboard, "panels">>): void }).f(${JSON.stringify(rest, null, 1)});`);
    const file = join(scratch, name.replace(".json", ".ts"));
    writeFileSync(file, parts.join("\n"));
    files.push(file);
  }
  const options = { strict: true, noEmit: true, skipLibCheck: true, target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler, types: [] };
  const program = ts.createProgram(files, options);
  const faults = ts.getPreEmitDiagnostics(program).map(fault => {
    const text = ts.flattenDiagnosticMessageText(fault.messageText, "\n    ");
    if (!fault.file || fault.start === undefined) return text;
    const before = fault.file.text.slice(0, fault.start);
    const panel = before.slice(before.lastIndexOf("\n// ") + 4).split("\n")[0];
    return `${panel}: ${text}`;
  });
  if (faults.length > 0 || panels === 0) {
    console.log(`${faults.length} faults by @grafana/schema ${version}:\n${faults.join("\n")}`);
    process.exitCode = 1;
  } else {
    console.log(`${panels} panels are as @grafana/schema ${version} has them`);
  }
} finally {
  rmSync(scratch, { recursive: true });
}
