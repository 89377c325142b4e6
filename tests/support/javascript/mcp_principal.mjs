// The official TypeScript client of the Model Context Protocol: what one principal sees and calls at two replicas.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const tell = (...words) => console.log(JSON.stringify(words));
const client = new Client({ name: "test", version: "1" });
const headers = { Authorization: `Bearer ${token}` };
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
const names = async () => (await client.listTools()).tools.map((tool) => tool.name);
while (!(await names()).includes(own)) await new Promise((done) => setTimeout(done, 200)); // a replica may lag
while (!(await names()).includes(own)) await new Promise((done) => setTimeout(done, 200)); // and so may the other
tell("tools", await names(), await names());
tell("result", (await client.callTool({ name: own, arguments: {} })).content[0].text);
const refused = { name: others, arguments: {} };
tell("refused", await client.callTool(refused).catch((error) => error.message));
