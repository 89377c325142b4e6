'use strict';
// One process that holds everything in memory: Express, ws, and request/response correlation.

const { randomUUID } = require('node:crypto');
const http = require('node:http');
const cors = require('cors');
const express = require('express');
const { WebSocketServer } = require('ws');
const { expect, settle } = require('./waiting');

const sockets = new Map();
const capabilities = new Map();
const app = express();
const server = http.createServer(app);

new WebSocketServer({ server }).on('connection', (socket) => {
  const clientId = randomUUID();
  sockets.set(clientId, socket);
  socket.on('message', (text) => {
    const frame = JSON.parse(text);
    if (frame.type === 'capability') capabilities.set(clientId, frame.capabilities);
    else if (frame.type === 'response') settle(frame);
  });
  socket.on('close', () => {
    sockets.delete(clientId);
    capabilities.delete(clientId);
  });
  socket.send(JSON.stringify({ type: 'connection', clientId }));
});

app.use(cors());
app.use(express.json());

app.get('/api/capabilities', (request, response) => {
  response.json(Object.fromEntries(capabilities));
});

app.post('/api/command', async (request, response) => {
  const { clientId, command } = request.body;
  const socket = sockets.get(clientId);
  if (socket === undefined) {
    response.status(404).json({ error: 'Client not found' });
    return;
  }
  const { requestId, answer } = expect();
  socket.send(JSON.stringify({ type: 'command', requestId, ...command }));
  try {
    response.json(await answer);
  } catch (error) {
    response.status(500).json({ error: 'Command failed', message: error.message });
  }
});

server.listen(Number(process.env.PORT), '127.0.0.1', 1024);
