/** Builds the files that gateways serve; with `--check` compares them with those that are committed. */

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const STATIC = fileURLToPath(new URL("../../gateway/static/", import.meta.url));
const MAX_GZIPPED_BYTES = 12 * 1024;

async function bundled(entry, format) {
  const { outputFiles } = await build({
    absWorkingDir: HERE,
    entryPoints: [entry],
    bundle: true,
    write: false,
    minify: true,
    format,
    target: "es2022",
    banner: { js: "/* AgentBridge for browsers and Node. Built from clients/javascript; don't edit. */" },
  });
  return outputFiles[0].text;
}

/** Returns the types in one file: those of the public interface, and the functions of the entry. */
function types() {
  const folder = mkdtempSync(join(tmpdir(), "agentbridge-types-"));
  try {
    const options = ["--emitDeclarationOnly", "--declaration", "--outDir", folder];
    execFileSync("npx", ["--no-install", "tsc", ...options], { cwd: HERE, stdio: ["ignore", "inherit", "inherit"] });
    const declared = readFileSync(join(folder, "types.d.ts"), "utf8");
    return declared + ENTRY_TYPES;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const ENTRY_TYPES = `/** Connect a page, or a process of Node, to a gateway; it goes on by itself. */
export declare function connect(options: ConnectOptions): AgentBridge;
/** An error with a code of the page's own, which agents read in \`details.code\`. */
export declare class ToolError extends Error {
    readonly code: string;
    readonly details?: unknown;
    constructor(code: string, message: string, details?: unknown);
}
declare global {
    /** The connection of the script tag, for pages that have one; without \`data-\` attributes only \`connect\`. */
    var agentbridge: AgentBridge & { connect: typeof connect; ToolError: typeof ToolError };
}
`;

const files = {
  "agentbridge.js": await bundled("src/script.ts", "iife"),
  "agentbridge.mjs": await bundled("src/index.ts", "esm"),
  "agentbridge.d.mts": types(),
};

const faults = [];
for (const [name, text] of Object.entries(files)) {
  const bytes = gzipSync(text, { level: 9 }).length;
  console.log(`${name}: ${text.length} bytes, ${bytes} gzipped`);
  if (bytes > MAX_GZIPPED_BYTES) faults.push(`${name} has more than ${MAX_GZIPPED_BYTES} bytes gzipped`);
  if (!process.argv.includes("--check")) writeFileSync(join(STATIC, name), text);
  else if (readFileSync(join(STATIC, name), "utf8") !== text) faults.push(`${name} is not what the sources build: npm run build`);
}
for (const fault of faults) console.error(fault);
process.exitCode = faults.length ? 1 : 0;
