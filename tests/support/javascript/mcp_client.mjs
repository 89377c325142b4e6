// The official TypeScript client of the Model Context Protocol: list, call, progress, cancel, changes, list again.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { ToolListChangedNotificationSchema } from "@modelcontextprotocol/sdk/types.js";

const tell = (...words) => console.log(JSON.stringify(words));
const client = new Client({ name: "test", version: "1" });
const headers = { Authorization: `Bearer ${token}` };
client.setNotificationHandler(ToolListChangedNotificationSchema, () => tell("changed"));
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
const names = async () => (await client.listTools()).tools.map((tool) => tool.name).sort();
while ((await names()).length < 3) await new Promise((done) => setTimeout(done, 200)); // the other replica may lag
tell("tools", await names());
tell("result", (await client.callTool({ name: "add", arguments: { title: "Milk" } })).structuredContent);
const progress = [];
const onprogress = ({ progress: value }) => {
  progress.push(value);
  tell("progress", value);
};
const slow = await client.callTool({ name: "slow", arguments: {} }, undefined, { onprogress });
tell("slow", slow.content[0].text, progress);
for (let number = 0; number < 3; number += 1) {
  const controller = new AbortController();
  const call = client.callTool({ name: "never", arguments: {} }, undefined, { signal: controller.signal });
  setTimeout(() => controller.abort("enough"), 1500);
  await call.catch(() => tell("aborted"));
}
tell("refused", await client.callTool({ name: "nothing", arguments: {} }).catch((error) => error.message));
setInterval(async () => tell("tools", await names()), 1000);
