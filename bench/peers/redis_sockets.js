'use strict';
// The scaled design's server of WebSockets: Redis tells which server holds a client, and carries commands to its
// channel and responses to the channel of whoever asked.

const { randomUUID } = require('node:crypto');
const http = require('node:http');
const Redis = require('ioredis');
const { WebSocketServer } = require('ws');

const redisPort = Number(process.env.REDIS_PORT);
const store = new Redis(redisPort, '127.0.0.1');
const publisher = new Redis(redisPort, '127.0.0.1');
const subscriber = new Redis(redisPort, '127.0.0.1');
const serverId = randomUUID();
const sockets = new Map();
const askers = new Map();

function onMessage(channel, text) {
  const { clientId, replyTo, data } = JSON.parse(text);
  const socket = sockets.get(clientId);
  if (socket === undefined) return;
  askers.set(data.requestId, replyTo);
  socket.send(JSON.stringify(data));
}

function onFrame(clientId, frame) {
  if (frame.type === 'capability') {
    store.set(`capabilities:${clientId}`, JSON.stringify(frame.capabilities));
  } else if (frame.type === 'response' && askers.has(frame.requestId)) {
    const replyTo = askers.get(frame.requestId);
    askers.delete(frame.requestId);
    publisher.publish(`server:${replyTo}`, JSON.stringify({ clientId, data: frame }));
  }
}

async function onConnection(socket) {
  const clientId = randomUUID();
  sockets.set(clientId, socket);
  socket.on('message', (text) => onFrame(clientId, JSON.parse(text)));
  socket.on('close', () => {
    sockets.delete(clientId);
    store.del(`client:${clientId}`, `capabilities:${clientId}`);
  });
  await store.hset(`client:${clientId}`, { serverId, lastSeen: Date.now() });
  socket.send(JSON.stringify({ type: 'connection', clientId }));
}

async function main() {
  subscriber.on('message', onMessage);
  await subscriber.subscribe(`server:${serverId}`);
  const server = http.createServer();
  new WebSocketServer({ server }).on('connection', onConnection);
  server.listen(Number(process.env.PORT), '127.0.0.1', 1024);
}

main();
