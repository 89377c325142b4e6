'use strict';
// The scaled design's agent API: looks up in Redis which server holds a client, publishes the command to that server's
// channel, and waits for the response on its own.

const { randomUUID } = require('node:crypto');
const cors = require('cors');
const express = require('express');
const Redis = require('ioredis');
const { expect, settle } = require('./waiting');

const redisPort = Number(process.env.REDIS_PORT);
const store = new Redis(redisPort, '127.0.0.1');
const publisher = new Redis(redisPort, '127.0.0.1');
const subscriber = new Redis(redisPort, '127.0.0.1');
const apiId = randomUUID();
const app = express();

app.use(cors());
app.use(express.json());

app.post('/api/command', async (request, response) => {
  const { clientId, command } = request.body;
  const serverId = await store.hget(`client:${clientId}`, 'serverId');
  if (serverId === null) {
    response.status(404).json({ error: 'Client not found' });
    return;
  }
  const { requestId, answer } = expect();
  const data = { type: 'command', requestId, ...command };
  publisher.publish(`server:${serverId}`, JSON.stringify({ clientId, replyTo: apiId, data }));
  try {
    response.json(await answer);
  } catch (error) {
    response.status(500).json({ error: 'Command failed', message: error.message });
  }
});

async function main() {
  subscriber.on('message', (channel, text) => settle(JSON.parse(text).data));
  await subscriber.subscribe(`server:${apiId}`);
  app.listen(Number(process.env.PORT), '127.0.0.1', 1024);
}

main();
